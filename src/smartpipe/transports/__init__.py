"""Transports: AWS, and memory."""
