"""Tools a model can call while it answers."""
