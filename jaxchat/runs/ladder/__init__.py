"""Ladders: a series of depths trained with one recipe, and two recipes compared by them."""
