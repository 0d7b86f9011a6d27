"""Files for Docker, Kubernetes and AWS, and a cluster on this machine for trying things out."""
