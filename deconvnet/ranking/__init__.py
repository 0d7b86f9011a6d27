"""What to label next: the predicted images that a model would learn most from."""
