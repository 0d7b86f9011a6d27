"""Where the project runs: storage, execution (local or on Ray), deployment. It knows nothing of images and models."""
