"""The conformance kit, for the tests of plugins."""

from mti_lightning.testing.kit import (
    Check,
    attribution_checks,
    backbone_checks,
    check_attribution,
    check_backbone,
)

__all__ = [
    "Check",
    "attribution_checks",
    "backbone_checks",
    "check_attribution",
    "check_backbone",
]
