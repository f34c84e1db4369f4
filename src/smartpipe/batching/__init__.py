"""Entries gathered into requests of ten, and sent again when they fail."""
