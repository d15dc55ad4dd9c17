"""Random streams: every image has its own.

So it does not depend on its neighbours, the devices or a restart.
"""

from hashlib import blake2b

import torch

START = -1  # the step at which an image's parameters are drawn


def derive_seed(*parts: object) -> int:
    """Return a 64-bit key made from the text of `parts`, the same in every process."""
    digest = blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def generator_at(
    key: int,
    step: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008  immutable
) -> torch.Generator:
    """Return the generator of one image at one step.

    Args:
        key: The image's.
        step: The step.
        device: Where it draws. One seed gives other numbers on another kind of device: what has to
            be the same everywhere is drawn on the CPU and moved.
    """
    # PyTorch's generator on CPU keeps 32 bits of its seed.
    return torch.Generator(device).manual_seed(derive_seed(key, step) & 0xFFFF_FFFF)
