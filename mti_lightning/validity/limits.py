"""What each check's figures mean, and the limits beyond which they say "do not believe"."""

import math
from dataclasses import dataclass

# Limits lie between what the vetoed shapes' network has for its eight classes at layers 3 and 4
# ("the world": the worst), and what it has with each weight tensor shuffled ("shuffled") or the
# attribution's signs flipped at random ("flipped").
MOST_ERROR = 0.5  # off by half the response; the world 0 at layer4, 0.1 to 1.1 at layer3
LEAST_CORRELATION = 0.5  # the world 0.88, flipped -0.2; below, under a quarter is explained
LEAST_RATIO, MOST_RATIO = 1 / 3, 3.0  # three times too little or much; the world 0.7, flipped 0.2
LEAST_BEATEN = 0.75  # between chance, 0.5, and all; the world 1
LEAST_ON = 0.5  # below, something else keeps most of them silent; the world 0.75, flipped 0
LEAST_SPREAD = 0.2  # the world 0.36, shuffled 0.01 to 0.13
MOST_ALIKE = 0.75  # cosine; the world 0.24, shuffled 0.95
LEAST_STABLE = 0.5  # cosine of what should agree; the world 0.8, flipped 0 (views)
LEAST_MARGIN = 0.1  # of that cosine above what need not agree; the world 0.2, shuffled 0.03
MOST_KEPT = 0.75  # cosine; the world 0.2, a method that ignores the weights 1
LEAST_COSINE = 0.45  # the world 0.56 but for one of 16, flipped 0.31 to 0.57
LEAST_PURITY = 0.8  # the world 0.85, flipped 0.12 to 0.76
# Of a patch test, its level. The world at layer4, 256 pictures, against random patches alone: every
# class, either sign, below 0.001, effects of 0.7 to 1.8 standard deviations; opposite signs above
# 0.99. EfficientNet-Lite0 at blocks.4, two classes: below 0.03 with 96 pictures, effects of 0.25 to
# 0.54, places shuffled above 0.6; opposite signs above 0.99 with 128. At 48 pictures it may miss.
MOST_P = 0.05
# From expressed, 0, to silent, 1: in toys genuine tension of 18 of 19 outputs lies lower, and the
# interference of all 25 higher; the world 0.07 to 0.83.
MOST_INTERFERENCE = 0.9
# Over parts of composites: EfficientNet-Lite0 at blocks.6 and blocks.4 0.54 to 0.61, the world 0.52
# to 0.66; act × grad at blocks.4 0.16 to 0.27 and at the world's layer2 0.06, flipped 0.22 at most.
LEAST_TRUE, LEAST_LIKELY = 0.3, 0.4
LEAST_NAMED = 0.3  # over twice chance, of few pictures; the world 0.38
LEAST_LIFT = 3.0  # average precision over chance, where 1 is of no use; the world 11


@dataclass(frozen=True)
class Limit:
    """A figure that should lie in a range, and what to think where it does not."""

    figure: str
    why: str
    least: float = -math.inf
    most: float = math.inf
    decisive: bool = False  # one such figure is enough not to believe anything
    slight: bool = False  # it warns that nothing was seen, which is no sign that a check failed


MORE, OPPOSITE = "more than random", "p of the opposite"
CHECKS: dict[str, tuple[str, *tuple[Limit, ...]]] = {
    "completeness": (
        "ΣA against r − r(baseline); errors in shares of the latter's typical size.",
        Limit("median error", "E⁺ and E⁻ say how r tilts, not what it is made of", most=MOST_ERROR),
        Limit("correlation", "E⁺ − E⁻ does not follow the response", least=LEAST_CORRELATION),
    ),
    "silencing inhibitory units": (
        "Set to the baseline they raise r as predicted (ratio 1), more than as many random units.",
        Limit("ratio", "E⁻ does not predict what silencing does", LEAST_RATIO, MOST_RATIO),
        Limit(MORE, "what is called inhibitory does not inhibit", LEAST_BEATEN, decisive=True),
    ),
    "silencing excitatory units": (
        "Set to the baseline they lower r as predicted (ratio 1), more than as many random units.",
        Limit("ratio", "E⁺ does not predict what silencing does", LEAST_RATIO, MOST_RATIO),
        Limit(MORE, "what is called excitatory does not excite", LEAST_BEATEN, decisive=True),
    ),
    "turning tense pictures on": (
        "Share of the tensest with r ≤ 0 that get r > 0 when inhibitory units are silenced.",
        Limit("on", "inhibition is not what keeps tense pictures silent", least=LEAST_ON),
        Limit("margin", "as many random units turn as many on", least=LEAST_MARGIN),
    ),
    "selectivity": (
        "Spread of r in shares of its distance from r(0); cosine of different pictures' A.",
        Limit("spread", "the response hardly depends on the picture", least=LEAST_SPREAD),
        Limit("alike", "the attribution hardly depends on the picture", most=MOST_ALIKE),
    ),
    "stability over views": (
        "Cosine of A with that of a slightly cropped, noisy view; margin over different pictures.",
        Limit("cosine", "attributions do not outlast a slight change", LEAST_STABLE, decisive=True),
        Limit("margin", "attributions are no more like their own view's", least=LEAST_MARGIN),
    ),
    "pasting inhibitory patches": (
        "r of other pictures with them, less r with random ones, in sds of r; p is corrected.",
        Limit(
            "p",
            "what is called inhibitory is not seen to inhibit elsewhere",
            most=MOST_P,
            slight=True,
        ),
        Limit(OPPOSITE, "what is called inhibitory excites", least=MOST_P, decisive=True),
    ),
    "pasting excitatory patches": (
        "r of other pictures with them, less r with random ones, in sds of r; p is corrected.",
        Limit(
            "p",
            "what is called excitatory is not seen to excite elsewhere",
            most=MOST_P,
            slight=True,
        ),
        Limit(OPPOSITE, "what is called excitatory inhibits", least=MOST_P, decisive=True),
    ),
    "randomised layers": (
        "Cosine of A with A after the weights of the last, half, all modules are shuffled; eMPRT.",
        Limit("all", "A shows the picture, not the weights", most=MOST_KEPT, decisive=True),
    ),
    "re-attribution of + pictures": (
        "Cosine of their activations with the target; purity, the share of A that excites.",
        Limit("cosine", "+ pictures are not what they should show", least=LEAST_COSINE),
        Limit("purity", "much of what + pictures show does not excite", least=LEAST_PURITY),
    ),
    "re-attribution of - pictures": (
        "Cosine of their activations with the target; purity, the share of A that inhibits.",
        Limit("cosine", "- pictures are not what they should show", least=LEAST_COSINE),
        Limit("purity", "much of what - pictures show does not inhibit", least=LEAST_PURITY),
    ),
    "stability over seeds": (
        "Cosine of pictures of one target from different noise; margin over other targets.",
        Limit(
            "cosine", "the noise at the start decides over pictures", LEAST_STABLE, decisive=True
        ),
        Limit("margin", "pictures of other targets are as alike", least=LEAST_MARGIN),
    ),
    "pictures": ("Whether + and − inversions of the tensest can be made at all.",),
    "what other networks see": (
        "The class's rank; in − pictures the best of what else they name first in the sources.",
    ),
    "likeness to photographs": (
        "Of how + and − pictures are processed up to a layer: 0 like noise, 1 like a photograph.",
    ),
    "interference": (
        "Median index (act × grad) of the tensest; its place from expressed, 0, to silent, 1.",
        Limit("contrast", "the index does not tell expressed from silent", least=LEAST_MARGIN),
        Limit("place", "other features may cause the tension", most=MOST_INTERFERENCE),
    ),
    "truth by intervention": (
        "Rank correlations: A, summed over a part's place, with what it does; tension with true.",
        Limit("parts", "attributions hardly follow what parts do", least=LEAST_LIKELY),
        Limit("parts", "they say nothing of what parts do", least=LEAST_TRUE, decisive=True),
        Limit(
            "tension's p", "tension is not seen to follow what parts do", most=MOST_P, slight=True
        ),
    ),
    "truth: what a judge sees": (
        "Share of inversions of truly tense pictures that a network with no part in them names so.",
        Limit("named", "pictures do not show what excites and inhibits", least=LEAST_NAMED),
    ),
    "truth: ranking by tension": (
        "Average precision of finding what holds the shape and its veto; lift over chance.",
        Limit("lift", "tension does not find the tense pictures", least=LEAST_LIFT),
    ),
}


@dataclass(frozen=True)
class Finding:
    """A line of the report: a check, its figures, what they mean, and why not to believe it."""

    check: str
    values: dict[str, float]
    meaning: str
    warnings: tuple[str, ...]
    decisive: bool = False
    slight: bool = False  # whether the warnings say that nothing was seen, and no more

    @property
    def word(self) -> str:
        """What its warnings are shown behind: where nothing was seen, less is doubted."""
        return "with care" if self.slight else "do not believe"


def finding(check: str, values: dict[str, float]) -> Finding:
    """Hold figures against the limits; NaN is no reason to believe, and breaks them."""
    meaning, *limits = CHECKS[check]
    held = [(limit, values[limit.figure]) for limit in limits if limit.figure in values]
    broken = [limit for limit, value in held if not limit.least <= value <= limit.most]
    why = tuple(limit.why for limit in broken)
    decisive = any(limit.decisive for limit in broken)
    slight = bool(broken) and all(limit.slight for limit in broken)
    return Finding(check, values, meaning, why, decisive, slight)


def unmeasured(check: str, why: str) -> Finding:
    """Say why a check does not apply; it speaks neither for nor against."""
    return Finding(check, {}, f"Not measured, because {why}.", ())


def is_unmeasured(found: Finding) -> bool:
    """Return whether a check that could have spoken did not apply."""
    return not found.values and not found.warnings and len(CHECKS[found.check]) > 1


def has_limits(found: Finding) -> bool:
    """Return whether a finding could have warned."""
    return bool(found.values) and len(CHECKS[found.check]) > 1
