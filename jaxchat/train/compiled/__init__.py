"""What a compiled program does, counted in its text: no device is needed."""
