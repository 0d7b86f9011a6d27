"""Training: the loop, its batches, and the two ways to run it (Ray Train, or this process)."""
