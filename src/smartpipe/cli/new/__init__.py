"""``smartpipe new``: a project that runs."""
