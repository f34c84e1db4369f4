"""``smartpipe doctor``: finds mistakes in declarations, settings and deployment files that lose work or messages."""
