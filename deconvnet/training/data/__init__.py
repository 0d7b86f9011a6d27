"""Batches for training: the order of an epoch, reading and decoding examples, augmentation."""
