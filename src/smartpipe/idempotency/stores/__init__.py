"""Idempotency stores: one module for each kind of server."""
