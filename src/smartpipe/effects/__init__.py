"""An effect that happens once: claims on it, in this process and in stores that processes share."""
