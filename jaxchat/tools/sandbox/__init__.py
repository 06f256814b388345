"""Programs of a model, run where they can do no harm."""
