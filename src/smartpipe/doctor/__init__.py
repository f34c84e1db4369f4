"""``smartpipe doctor``: finds mistakes in declarations, settings, files and accounts that lose work or messages."""
