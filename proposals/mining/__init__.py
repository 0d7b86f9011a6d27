"""Choose and cut training crops."""
