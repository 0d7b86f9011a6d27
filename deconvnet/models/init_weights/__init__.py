"""Initial weights of the networks.

They come from VGG-16 (possibly pruned), from a model that was trained for other classes, or, for DeconvNet's decoder, from
interpolation filters.
"""
