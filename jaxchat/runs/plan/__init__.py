"""What a run would take, and what it would refuse, before it starts."""
