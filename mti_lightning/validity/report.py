"""The page of the validity report: a verdict for each feature, and why."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mti_lightning.features.classes import display
from mti_lightning.tables import in_markdown
from mti_lightning.validity.limits import Finding, has_limits, is_unmeasured

# Share of checks that warn, but for those that saw nothing; the world 1 in 12, no training 2,
# shuffled, flipped 5; EfficientNet-Lite0 1 in 11, wrong runs 6 to 9.
MANY = 0.15

DISBELIEF = "do not believe it"
_LIMITS_OF = (
    "What warns was set on the vetoed shapes' backbone: on another network the figures say more "
    "than the verdict."
)


@dataclass(frozen=True)
class Report:
    """The page.

    Attributes:
        provenance: What was checked: backbone, layer, method, pictures.
        findings: By feature.
        classes: Of features that stand for a class, its name.
    """

    provenance: dict[str, Any]
    findings: dict[str, list[Finding]]
    classes: Mapping[str, str] = field(default_factory=dict)

    def shown(self, feature: str) -> str:
        """Return how a feature is shown to people."""
        return display(feature, self.classes.get(feature, ""))

    @property
    def warnings(self) -> list[str]:
        """Each warning, and before it how much to doubt for it."""
        return [
            f"{found.word}: {self.shown(feature)}: {found.check}: {why}"
            for feature, of_feature in self.findings.items()
            for found in of_feature
            for why in found.warnings
        ]

    @property
    def verdicts(self) -> dict[str, str]:
        """For each feature how far to believe it, in a few words; of checks that can warn."""
        verdicts = {}
        for feature, of_feature in self.findings.items():
            checks = [found for found in of_feature if found.warnings or has_limits(found)]
            failed = [found for found in checks if found.warnings]
            decisive = [found.check for found in failed if found.decisive]
            many = sum(not found.slight for found in failed) > MANY * len(checks)
            if decisive or many:
                word = DISBELIEF
            else:
                word = "believe it with care" if failed else "no reason found not to believe it"
            verdicts[feature] = f"{word}: {len(failed)} of {len(checks)} checks warn"
            if decisive:
                verdicts[feature] += f", {', '.join(decisive)} decisively"
            if absent := sum(is_unmeasured(found) for found in of_feature):
                verdicts[feature] += f"; {absent} could not be measured"
        return verdicts

    @property
    def disbelieved(self) -> list[str]:
        """The features of which nothing should be believed."""
        return [name for name, said in self.verdicts.items() if said.startswith(DISBELIEF)]

    def markdown(self) -> str:
        """Return the page as Markdown."""
        lines = ["# How far to believe the pictures", ""]
        lines += [
            f"- **{in_markdown(self.shown(name))}: {told}**" for name, told in self.verdicts.items()
        ]
        lines += [f"- {in_markdown(told)}" for told in self.warnings] + [""]
        lines += [", ".join(f"{name} {value}" for name, value in self.provenance.items()), ""]
        lines += [_LIMITS_OF]
        for feature, of_feature in self.findings.items():
            lines += [
                "",
                f"## {in_markdown(self.shown(feature))}",
                "",
                "| check | figures | meaning |",
                "|---|---|---|",
            ]
            for found in of_feature:
                figures = ", ".join(f"{name} {_figure(of)}" for name, of in found.values.items())
                word = found.word.capitalize()
                doubts = "".join(f" **{word}: {why}.**" for why in found.warnings)
                lines.append(f"| {found.check} | {figures} | {found.meaning}{doubts} |")
        return "\n".join(lines) + "\n"

    def json(self) -> str:
        """Return the page as JSON, with null where there is no figure."""
        page = {"verdicts": self.verdicts, "warnings": self.warnings, **self.provenance}
        page |= {"limits": _LIMITS_OF, "classes": dict(self.classes)}
        features = {name: [asdict(f) for f in found] for name, found in self.findings.items()}
        for row in (row for rows in features.values() for row in rows):
            row["values"] = {k: v if math.isfinite(v) else None for k, v in row["values"].items()}
        return json.dumps({**page, "features": features}, indent=1, ensure_ascii=False)


def _figure(value: float) -> str:
    """Return a figure as the page has it; a count as it is."""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3g}"
