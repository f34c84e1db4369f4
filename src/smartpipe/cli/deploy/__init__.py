"""``smartpipe deploy``: files that run services in containers."""
