"""The atoms of a dictionary as the basis of an attribution: which of them excite, which inhibit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mti_lightning import (
    ActivationLayout,
    Attribution,
    Backbone,
    BoundFeature,
    InputError,
    Layer,
    Pass,
    excitation,
    inhibition,
)
from mti_sae.dictionary import Dictionary


@final
@dataclass(frozen=True)
class Atoms:
    """Act×grad in the basis of a dictionary: at each position they add up to what it is there.

    Attributes:
        attribution: A_k = z_k · ⟨atom k, ∂r/∂a⟩, [N, K, positions].
        rest: What the dictionary does not explain: of its bias and of its error, [N, positions].
        codes: z, [N, K, positions].
        responses: r, [N].
    """

    attribution: Tensor
    rest: Tensor
    codes: Tensor
    responses: Tensor

    @property
    def excitation(self) -> Tensor:
        """E⁺ of each atom, over the positions, [N, K]."""
        return excitation(self.attribution.flatten(0, 1)).view_as(self.attribution[..., 0])

    @property
    def inhibition(self) -> Tensor:
        """E⁻ of each atom, over the positions, [N, K], not negative."""
        return inhibition(self.attribution.flatten(0, 1)).view_as(self.attribution[..., 0])

    @property
    def tension(self) -> Tensor:
        """√(E⁺E⁻) of each atom, [N, K]: large if it excites in some places, inhibits in others."""
        return (self.excitation * self.inhibition).sqrt()


@torch.enable_grad()
def attribute_atoms(
    backbone: Backbone,
    pictures: Tensor,
    bound_feature: BoundFeature,
    layer: Layer,
    dictionary: Dictionary,
) -> Atoms:
    """Attribute a feature's responses to the atoms that a layer's activations are made of.

    Args:
        backbone: The network.
        pictures: [N, 3, H, W] in 0..1, of the backbone's input size.
        bound_feature: The feature.
        layer: The attribution layer, whose activations the dictionary was made for.
        dictionary: The dictionary.

    Raises:
        InputError: If the dictionary does not fit the layer.
    """
    layout = backbone.layout(layer)
    dictionary.check_fits(layout)
    tapped = backbone.run(pictures, [layer, bound_feature.layer], cut=layer)
    activations, responses = tapped[layer], bound_feature(tapped[bound_feature.layer])
    (gradient,) = torch.autograd.grad(responses.sum(), activations)
    values, slopes = (
        part.detach().movedim(layout.channel_dim, -1).reshape(len(part), -1, layout.channels)
        for part in (activations, gradient)
    )  # [N, P, C]
    codes = dictionary.encode(values)  # [N, P, K]
    attribution = codes * (slopes @ dictionary.atoms.T.to(slopes))
    rest = (values * slopes).sum(-1) - attribution.sum(-1)
    return Atoms(attribution.mT, rest, codes.mT, responses.detach())


@final
class AtomGradient(Attribution):
    """Act×grad by way of some of a dictionary's atoms: A = (Σ_k z_k · atom k) ⊙ ∂r/∂a.

    With all atoms and the rest it is act×grad. Inversions of a few atoms show what these, and no
    other, contribute.

    Args:
        dictionary: The dictionary; without one each channel is an atom.
        atoms: Which atoms count; by default all.
        rest: Count what the dictionary does not explain, too.

    Raises:
        InputError: If there is no such atom.
    """

    differentiable = True
    additive = False  # what some atoms contribute is not all
    needs_baseline = False

    def __init__(
        self,
        dictionary: Dictionary | None = None,
        atoms: Sequence[int] | None = None,
        rest: bool = False,
    ) -> None:
        self.dictionary, self.rest = dictionary, rest
        self.atoms = None if atoms is None else list(atoms)
        if dictionary is None and atoms is not None:
            raise InputError("atoms: they are those of a dictionary; give one")
        count = 0 if dictionary is None else len(dictionary.atoms)
        for atom in self.atoms or []:
            if not 0 <= atom < count:
                raise InputError(f"atoms: {atom} is out of range; there are atoms 0..{count - 1}")

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        (gradient,) = torch.autograd.grad(
            forward.responses.sum(), forward.activations, create_graph=create_graph
        )
        return self._counted(forward.activations, forward.layout) * gradient

    def _counted(self, activations: Tensor, layout: ActivationLayout) -> Tensor:
        """Return what part of the activations counts."""
        if self.dictionary is None:
            return activations
        self.dictionary.check_fits(layout)
        values = activations.movedim(layout.channel_dim, -1)  # [N, ..., C]
        codes = self.dictionary.encode(values)  # [N, ..., K]
        atoms = self.dictionary.atoms.to(values)
        explained = codes @ atoms
        chosen = explained if self.atoms is None else codes[..., self.atoms] @ atoms[self.atoms]
        if self.rest:
            chosen = chosen + values - explained
        return chosen.movedim(-1, layout.channel_dim)
