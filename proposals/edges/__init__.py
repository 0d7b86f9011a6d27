"""Detect edges in images, for EdgeBox. Read and write the models of edge detectors, and measure their quality."""
