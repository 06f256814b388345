"""Products and attention, as one kind of machine computes them fastest."""
