"""Idempotency stores: one module for each server."""
