"""``smartpipe schema``: the schemas of events, and their comparison with earlier versions."""
