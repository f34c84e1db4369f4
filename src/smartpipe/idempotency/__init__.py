"""Idempotency: claims of handlers on events, and the stores of these claims."""
