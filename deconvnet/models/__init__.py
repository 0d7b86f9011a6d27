"""DeconvNet and FCN-8s, their initial weights, and model folders."""
