"""Muon and AdamW as Optax chains: one table says which parameter gets what."""
