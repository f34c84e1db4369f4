"""What operators do with dead letters: look, send back, delete."""
