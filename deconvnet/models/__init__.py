"""DeconvNet, FCN-8s, and the weights they start from."""
