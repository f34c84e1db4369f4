"""Files that run services in containers. All are derived from one model."""
