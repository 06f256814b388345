"""Weights on disk: our own checkpoints, and models of other projects, imported and exported."""
