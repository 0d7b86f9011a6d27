"""The networks DeconvNet and FCN-8s, their initial weights, and the folders that trained models are saved in."""
