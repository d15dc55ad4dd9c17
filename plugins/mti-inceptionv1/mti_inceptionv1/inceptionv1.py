"""InceptionV1 (GoogLeNet) as TensorFlow's `inception5h` has it, with the names of its nodes.

Not torchvision's or timm's GoogLeNet: local response normalisation and no batch normalisation,
4a's and 4e's own widths, pictures in -117..138, and 1,008 outputs.
"""

from collections.abc import Mapping
from typing import Any, final

import torch
from timm.layers import Conv2dSame, create_pool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

# Channels of the 1x1 branch, of 3x3 with its bottleneck, of 5x5 with its own, and behind the pool.
MIXED = {
    "mixed3a": (64, (96, 128), (16, 32), 32),
    "mixed3b": (128, (128, 192), (32, 96), 64),
    "mixed4a": (192, (96, 204), (16, 48), 64),
    "mixed4b": (160, (112, 224), (24, 64), 64),
    "mixed4c": (128, (128, 256), (24, 64), 64),
    "mixed4d": (112, (144, 288), (32, 64), 64),
    "mixed4e": (256, (160, 320), (32, 128), 128),
    "mixed5a": (256, (160, 320), (48, 128), 128),
    "mixed5b": (384, (192, 384), (48, 128), 128),
}
# Pools between the mixed layers; TensorFlow numbered them with the layers.
POOLS = {"mixed4a": "maxpool4", "mixed5a": "maxpool10"}
# What to look at first: the mixed layers, before and after their ReLUs.
LAYERS = {"inceptionv1_tf": [f"{name}{end}" for name in MIXED for end in ("_pre_relu", "")]}
CLASSIFIER = "softmax2_pre_activation_matmul"


def _pool() -> nn.Module:
    pool: nn.Module = create_pool2d("max", 3, 2, padding="same")  # type: ignore[no-untyped-call]
    return pool


@final
class Node(nn.Identity):
    """A name for the values that pass."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  as nn.Identity calls it
        """Return the values as a tensor of their own, else `mti layers` would pass it over."""
        return input.view_as(input)


@final
class Concatenation(nn.Module):
    """Joins the branches of a mixed layer along their channels."""

    def forward(self, branches: list[Tensor]) -> Tensor:
        """Return branches [N, C_i, H, W] as one, [N, ΣC_i, H, W]."""
        return torch.cat(branches, 1)


@final
class LocalResponseNorm(nn.Module):
    """Divides by the root of 1 + 1e-4 · the mean square of the nine channels around each.

    The channels are summed up by a convolution: by PyTorch's own module, which pools over them, the
    two of these norms would take a third of the time that the network takes up to mixed3a.

    Args:
        channels: Of what is normalised.
    """

    band: Tensor  # [C, C, 1, 1]
    one: Tensor  # [C]

    def __init__(self, channels: int) -> None:
        super().__init__()
        around = torch.ones(channels, channels).tril(4).triu(-4)
        self.register_buffer("band", 1e-4 / 9 * around[:, :, None, None], persistent=False)
        self.register_buffer("one", torch.ones(channels), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """Return values [N, C, H, W], normalised."""
        return values * nn.functional.conv2d(values.square(), self.band, self.one).rsqrt()


@final
class InceptionV1(nn.Module):
    """InceptionV1, a module for each node of the TensorFlow graph, all of them on the way.

    For every convolution NAME there are `NAME_pre_relu_conv` (its weights), `NAME_pre_relu` and
    `NAME`; for every mixed layer `mixed3a_pre_relu`, the branches joined before their ReLUs, and
    `mixed3a`. Between the two the branches pass their own ReLUs (`mixed3a_1x1`, ...).

    Args:
        num_classes: Outputs; 0 for the pooled features, [N, 1024].
        in_chans: Channels of the pictures.
    """

    def __init__(self, num_classes: int = 1008, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self._add_conv("conv2d0", in_chans, 64, 7, stride=2)
        self.maxpool0 = _pool()
        self.localresponsenorm0 = LocalResponseNorm(64)
        self._add_conv("conv2d1", 64, 64, 1)
        self._add_conv("conv2d2", 64, 192, 3)
        self.localresponsenorm1 = LocalResponseNorm(192)
        self.maxpool1 = _pool()
        channels = 192
        for name in MIXED:
            if name in POOLS:
                self.add_module(POOLS[name], _pool())
            channels = self._add_mixed(name, channels)
        self.num_features = self.head_hidden_size = channels
        self.avgpool0 = nn.AdaptiveAvgPool2d(1)
        self.softmax2_pre_activation_matmul: nn.Module
        self.reset_classifier(num_classes)
        self.softmax2_pre_activation = Node()

    def _add_conv(self, name: str, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        # At stride 1 TensorFlow's padding is symmetric.
        conv = (
            nn.Conv2d(inputs, outputs, size, padding=size // 2)
            if stride == 1
            else Conv2dSame(inputs, outputs, size, stride)
        )
        # Trained weights are what it is for; with random ones no layer shall fall silent.
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.add_module(f"{name}_pre_relu_conv", conv)
        self.add_module(f"{name}_pre_relu", Node())
        self.add_module(name, nn.ReLU())

    def _add_mixed(self, name: str, inputs: int) -> int:
        """Add the modules of a mixed layer; return how many channels it puts out."""
        direct, (narrow3, wide3), (narrow5, wide5), pooled = MIXED[name]
        self._add_conv(f"{name}_1x1", inputs, direct, 1)
        self._add_conv(f"{name}_3x3_bottleneck", inputs, narrow3, 1)
        self._add_conv(f"{name}_3x3", narrow3, wide3, 3)
        self._add_conv(f"{name}_5x5_bottleneck", inputs, narrow5, 1)
        self._add_conv(f"{name}_5x5", narrow5, wide5, 5)
        self.add_module(f"{name}_pool", nn.MaxPool2d(3, 1, 1))
        self._add_conv(f"{name}_pool_reduce", inputs, pooled, 1)
        self.add_module(f"{name}_pre_relu", Concatenation())
        self.add_module(name, Concatenation())
        return direct + wide3 + wide5 + pooled

    def _run(self, name: str, values: Any) -> Tensor:
        result: Tensor = self.get_submodule(name)(values)
        return result

    def _before_softmax(self, pooled: Tensor) -> Tensor:
        return self._run("softmax2_pre_activation", self._run(CLASSIFIER, pooled))

    def _before_relu(self, name: str, values: Tensor) -> Tensor:
        return self._run(f"{name}_pre_relu", self._run(f"{name}_pre_relu_conv", values))

    def _conv(self, name: str, values: Tensor) -> Tensor:
        return self._run(name, self._before_relu(name, values))

    def _mixed(self, name: str, values: Tensor) -> Tensor:
        branches = {
            "1x1": values,
            "3x3": self._conv(f"{name}_3x3_bottleneck", values),
            "5x5": self._conv(f"{name}_5x5_bottleneck", values),
            "pool_reduce": self._run(f"{name}_pool", values),
        }
        before = [self._before_relu(f"{name}_{end}", values) for end, values in branches.items()]
        joined = self._run(f"{name}_pre_relu", before)
        # Taken apart again, so that the joined values are on the way and gradients reach them.
        parts = torch.split_with_sizes(joined, [part.shape[1] for part in before], 1)
        after = [
            self._run(f"{name}_{end}", part) for end, part in zip(branches, parts, strict=True)
        ]
        return self._run(name, after)

    def forward_features(self, pictures: Tensor) -> Tensor:
        """Return mixed5b's output, [N, 1024, H / 32, W / 32], for pictures in -117..138."""
        values: Tensor = self.localresponsenorm0(self.maxpool0(self._conv("conv2d0", pictures)))
        values = self._conv("conv2d2", self._conv("conv2d1", values))
        values = self.maxpool1(self.localresponsenorm1(values))
        for name in MIXED:
            if name in POOLS:
                values = self._run(POOLS[name], values)
            values = self._mixed(name, values)
        return values

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the class logits, [N, 1008], or what they are computed from, [N, 1024]."""
        pooled: Tensor = self.avgpool0(features).flatten(1)
        return pooled if pre_logits else self._before_softmax(pooled)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the class logits before their softmax, [N, 1008], for pictures in -117..138."""
        return self.forward_head(self.forward_features(pictures))

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.softmax2_pre_activation_matmul

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a fresh one."""
        self.num_classes = num_classes
        self.softmax2_pre_activation_matmul = (
            nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        )


default_cfgs = generate_default_cfgs(
    {
        "inceptionv1_tf": {
            "input_size": (3, 224, 224),
            "num_classes": 1008,
            # Together they bring 0..1 to -117..138.
            "mean": (117 / 255,) * 3,
            "std": (1 / 255,) * 3,
            # As the authors of the paper show pictures: their largest square.
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "first_conv": "conv2d0_pre_relu_conv",
            "classifier": CLASSIFIER,
        }
    }
)


def _check_weights(weights: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Pass on the weights of a file, if they are this network's.

    Raises:
        ValueError: If some are missing.
    """
    own = [name for name in model.state_dict() if not name.startswith(CLASSIFIER)]
    missing = [name for name in own if name not in weights]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(own)} arrays that inception5h.pth holds are missing, "
            f"{missing[0]} is the first; give that file, which torch-lucent and faccent download"
        )
    return weights


@register_model
def inceptionv1_tf(pretrained: bool = False, **kwargs: Any) -> InceptionV1:
    """Build the network; its weights come from a file, as of `inception5h.pth`."""
    model: InceptionV1 = build_model_with_cfg(
        InceptionV1,
        "inceptionv1_tf",
        pretrained,
        pretrained_filter_fn=_check_weights,
        **kwargs,
    )
    return model
