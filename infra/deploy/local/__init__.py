"""A cluster on this machine: Ray nodes, an S3 server and MLflow."""
