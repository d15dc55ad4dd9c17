"""Dictionaries of directions for mti-lightning: features, and the basis of an attribution."""

from mti_sae.atoms import AtomGradient, Atoms, attribute_atoms
from mti_sae.dictionary import Dictionary

__all__ = ["AtomGradient", "Atoms", "Dictionary", "attribute_atoms"]
