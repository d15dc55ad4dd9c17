"""Dictionaries: atoms, directions in a layer's channel space, and the codes of activations."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mti_lightning import ActivationLayout, InputError

# What sparse autoencoders call their parts. Linear layers keep weights transposed.
_ATOMS = (("W_dec", False), ("decoder.weight", True), ("dictionary", False), ("atoms", False))
_ENCODER = (("W_enc", True), ("encoder.weight", False))  # here transposed is [C, K]
_ENCODER_BIAS = ("b_enc", "encoder.bias", "latent_bias")
_BIAS = ("b_dec", "decoder.bias", "pre_bias")
_THRESHOLD = ("threshold",)


@final
class Dictionary:
    """A sparse autoencoder, or any matrix of directions, from a file.

    Known are SAELens' names (W_enc, W_dec, b_enc, b_dec, threshold) and those of linear layers
    (encoder.weight, decoder.weight, ...). Codes are ReLU(encoder · (a − bias) + encoder bias), if
    above the threshold, and of these the `top` largest. A matrix without an encoder has the codes
    that rebuild the activations best, the smallest ones where there is a choice.

    Args:
        path: A file: .npy, .npz, .pt, .pth or .safetensors.
        key: What the atoms, [K, C], are called in it, where it is none of the known names.
        top: Keep this many codes at each position (a top-k autoencoder).
        centred: Subtract the decoder's bias before encoding, as most are trained.

    Raises:
        InputError: If the file cannot be read, or holds no such matrix.
    """

    def __init__(
        self, path: str, key: str | None = None, top: int | None = None, centred: bool = True
    ) -> None:
        self.path, self.key, self.top, self.centred = path, key, top, centred
        if top is not None and top < 1:
            raise InputError(f"top {top}: give 1 or more")
        parts = _read(path)
        self.atoms = self._atoms(parts)  # [K, C]
        if self.atoms.ndim != 2 or not self.atoms.isfinite().all():
            shape = list(self.atoms.shape)
            raise InputError(f"dictionary {path}: {shape} is no matrix of atoms [K, C], all finite")
        count, channels = self.atoms.shape
        encoder = None
        for name, is_transposed in _ENCODER:
            if name in parts:
                encoder = parts[name].T if is_transposed else parts[name]
        self.encoder = encoder  # [K, C]; None where codes are rebuilt from the atoms
        if encoder is None:
            self._inverse = torch.linalg.pinv(self.atoms.double()).float()  # [C, K]
        self.encoder_bias = _part(parts, _ENCODER_BIAS, count, path)
        self.threshold = _part(parts, _THRESHOLD, count, path)
        self.bias = _part(parts, _BIAS, channels, path)
        if encoder is not None and encoder.shape != self.atoms.shape:
            raise InputError(
                f"dictionary {path}: the encoder is {list(encoder.shape)} for atoms "
                f"{list(self.atoms.shape)}"
            )

    def _atoms(self, parts: Mapping[str, Tensor]) -> Tensor:
        if self.key is not None and self.key in parts:
            return parts[self.key]
        if self.key is None:
            if "" in parts:
                return parts[""]
            for name, is_transposed in _ATOMS:
                if name in parts:
                    return parts[name].T if is_transposed else parts[name]
        known = ", ".join(name for name, _ in _ATOMS)
        there = ", ".join(filter(None, parts)) or "one array without a name"
        raise InputError(
            f"dictionary {self.path}: no {self.key or f'matrix of a known name ({known})'} in it; "
            f"key: one of {there}"
        )

    def __repr__(self) -> str:
        return f"Dictionary({self.path!r}, {self.key!r}, {self.top!r}, {self.centred!r})"

    def encode(self, values: Tensor) -> Tensor:
        """Return the codes z, [..., K], of activations [..., C]."""
        inputs = values - self.bias.to(values) if self.centred else values
        if self.encoder is None:
            rebuilt: Tensor = inputs @ self._inverse.to(values)
            return rebuilt
        before = inputs @ self.encoder.T.to(values) + self.encoder_bias.to(values)
        codes: Tensor = before.relu() * (before > self.threshold.to(values))
        if self.top is not None and self.top < codes.shape[-1]:
            largest = codes.topk(self.top, -1)
            codes = torch.zeros_like(codes).scatter(-1, largest.indices, largest.values)
        return codes

    def check_fits(self, layout: ActivationLayout) -> None:
        """Make sure that a layer's activations have as many channels as the atoms.

        Raises:
            InputError: If they have not.
        """
        channels = self.atoms.shape[1]
        if layout.channels != channels:
            raise InputError(
                f"dictionary {self.path}: its atoms have {channels} channels, the layer's "
                f"activations {list(layout.shape)} have {layout.channels}"
            )


def _part(parts: Mapping[str, Tensor], names: tuple[str, ...], size: int, path: str) -> Tensor:
    """Return a vector of the file; zeros where there is none."""
    for name in names:
        if name in parts:
            if parts[name].shape != (size,):
                shape = list(parts[name].shape)
                raise InputError(f"dictionary {path}: {name} is {shape} and not [{size}]")
            return parts[name]
    return torch.zeros(size)


def _read(path: str) -> dict[str, Tensor]:
    """Read a file's arrays by name; a single array's name is empty.

    Raises:
        InputError: If it cannot be read.
    """
    if not Path(path).is_file():
        raise InputError(f"dictionary {path!r} is no file; give a .npy, .npz, .pt or .safetensors")
    found: object
    try:
        if path.endswith(".safetensors"):
            found = load_file(path)
        elif path.endswith((".pt", ".pth")):
            found = torch.load(path, map_location="cpu", weights_only=True)
        else:
            found = np.load(path, allow_pickle=False)
        for wrapper in ("state_dict", "model"):
            if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
                found = found[wrapper]
        named = found if isinstance(found, Mapping) else {"": found}
        arrays = {
            name: torch.as_tensor(value)
            for name, value in named.items()
            if isinstance(value, Tensor | np.ndarray)
        }
    except (
        *(OSError, EOFError, ValueError, TypeError, RuntimeError),
        *(pickle.PickleError, SafetensorError),
    ) as error:
        raise InputError(
            f"dictionary {path} holds no arrays of numbers that can be read"
        ) from error
    return {name: value.float() for name, value in arrays.items()}
