"""Effects that happen once: claims, and the stores that keep them."""
