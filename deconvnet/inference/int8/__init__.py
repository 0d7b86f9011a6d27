"""Prediction in 8-bit integers, on CPUs that are fast at it.

Weights and activations are integers of 8 bits. `ranges` records how large activations are, on some training images; `conversion`
makes a network of `layers` from a trained network and these ranges.
"""
