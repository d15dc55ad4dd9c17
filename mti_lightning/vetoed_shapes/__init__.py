"""Vetoed shapes: the built-in synthetic data set in which the truth is known, and its networks."""
