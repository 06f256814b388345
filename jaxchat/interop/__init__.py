"""Other projects' checkpoints: their names and layouts."""
