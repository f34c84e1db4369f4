"""``smartpipe doctor``."""
