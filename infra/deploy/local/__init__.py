"""A cluster on this machine, consisting of Ray nodes, an S3 server and MLflow."""
