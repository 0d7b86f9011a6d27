"""Files to deploy the project with Docker, Kubernetes and AWS, and a cluster on this machine for trying things out."""
