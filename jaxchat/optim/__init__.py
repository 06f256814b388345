"""Muon and AdamW as Optax chains: one table assigns every parameter to a group."""
