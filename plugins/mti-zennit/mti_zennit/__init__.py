"""Relevance propagation by zennit's rules as attribution methods of mti-lightning."""

from mti_zennit.methods import ModifiedGradient, Relevance

__all__ = ["ModifiedGradient", "Relevance"]
