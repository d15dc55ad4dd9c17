"""EfficientNet-Lite with ImageNet weights: importing this registers it with timm."""

from mti_efficientnet_lite.efficientnet_lite import (
    efficientnet_lite0_in1k,
    efficientnet_lite1_in1k,
    efficientnet_lite2_in1k,
)

__all__ = ["efficientnet_lite0_in1k", "efficientnet_lite1_in1k", "efficientnet_lite2_in1k"]
