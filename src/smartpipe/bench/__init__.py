"""``smartpipe bench``: the throughput, latency and cost of a fan-out, measured in separate processes."""
