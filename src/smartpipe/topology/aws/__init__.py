"""The topology on AWS: read, written, verified."""
