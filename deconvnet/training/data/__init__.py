"""Batches for training: the random order of the examples in an epoch, reading and decoding, augmentation."""
