"""Prediction of masks with trained networks, for a single image or for a folder of images."""
