"""Run a cluster of Ray nodes, an S3 server and MLflow on this machine."""
