"""The infrastructure of the project: storage, execution (local or on Ray) and deployment, without any image processing."""
