"""What runs: a worker's process, many of them as one, a function on Lambda."""
