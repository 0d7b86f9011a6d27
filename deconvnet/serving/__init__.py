"""Serve a registered model over HTTP with Ray Serve."""
