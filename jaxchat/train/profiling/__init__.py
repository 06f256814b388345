"""Profiling of training steps: recording a trace, and reading it without a browser."""
