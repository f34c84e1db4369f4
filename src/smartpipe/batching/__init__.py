"""Collects entries into requests of ten, and sends failed entries again."""
