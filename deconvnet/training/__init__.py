"""Training of the networks: the training loop, its batches, and two ways to run it (on Ray Train or in one local process)."""
