"""Superposition: features that share dimensions, and how to tell interference from inhibition."""
