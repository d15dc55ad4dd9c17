"""The conformance kit, for the tests of plugins.

A plugin's own test takes three lines:

    from mti_lightning.testing import check_attribution

    def test_my_method():
        check_attribution(MyMethod())
"""

from mti_lightning.testing.backbones import backbone_checks, check_backbone
from mti_lightning.testing.checks import Check
from mti_lightning.testing.methods import attribution_checks, check_attribution
from mti_lightning.testing.objectives import check_objective, objective_checks

__all__ = [
    "Check",
    "attribution_checks",
    "backbone_checks",
    "check_attribution",
    "check_backbone",
    "check_objective",
    "objective_checks",
]
