"""Receives messages from a queue, calls their handlers, and settles them."""
