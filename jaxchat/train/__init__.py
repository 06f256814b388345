"""The step, the loop that trains, checkpoints and metrics, and reinforcement learning."""
