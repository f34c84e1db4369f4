"""``smartpipe bench``: what a fan-out costs, and how long its events take, measured in processes of their own."""
