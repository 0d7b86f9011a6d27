"""Initial weights: VGG-16 (also pruned), a decoder that interpolates, and trained models of other classes."""
