"""What a run would take, said before it starts."""
