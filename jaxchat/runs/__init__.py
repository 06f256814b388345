"""A run, from its first stage to its report: the stages, its folder, and what reads it."""
