"""``smartpipe publish``: an event from the command line."""
