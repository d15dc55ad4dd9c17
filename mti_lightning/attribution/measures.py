"""The measures of a picture: what each is called in tables, stores and pages, and what it means."""

from typing import Final

MEANING: Final = {
    "response": "The feature's value before its activation function.",
    "excitation": "E⁺, the sum over places of what adds to the response.",
    "inhibition": "E⁻, the sum over places of what takes from the response.",
    "tension": "Large only where excitation and inhibition are both large.",
    "tension_centred": "Tension of activations less their mean over the data set.",
    "tension_l2": "The authors' criterion; large where much excites only, too.",
    "balance": "The smaller of E⁺ and E⁻ in shares of the larger, 0 to 1.",
    "minimum": "The smaller of E⁺ and E⁻.",
    "harmonic": "Their product in shares of their sum.",
    "cosine": "Of a picture's activations and their target, -1 to 1.",
    "interference": (
        "0: the feature's own inputs excite it. 1: another feature's do. Means nothing where there "
        "is no tension."
    ),
}
