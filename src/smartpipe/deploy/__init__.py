"""Files that run services in containers: Kubernetes manifests, a Dockerfile. All are derived from one model."""
