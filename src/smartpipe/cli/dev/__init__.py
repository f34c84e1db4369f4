"""``smartpipe dev``: a broker, the topology, workers and other processes in one terminal."""
