"""The processes that run services."""
