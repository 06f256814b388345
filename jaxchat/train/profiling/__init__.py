"""Where the time of a training step goes: recording a trace, and reading it without a browser."""
