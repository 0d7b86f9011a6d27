"""Choose and cut training crops."""

EXAMPLES_VERSION = 1  # increase it when a change makes the same inputs give other crops
