"""A network in which the atoms of a dictionary are the channels of a layer."""

from typing import Any, final

import timm
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from mti_lightning import InputError
from mti_sae.dictionary import Dictionary


@final
class Spliced(nn.Module):
    """A module whose output goes through the codes of a dictionary, and comes out the same.

    `codes` passes them on, [N, K, H, W] or as the output lies: units that can be silenced. What the
    dictionary leaves unexplained of the output goes round them.
    """

    def __init__(self, module: nn.Module, dictionary: Dictionary) -> None:
        super().__init__()
        self.module, self.codes, self._dictionary = module, nn.Identity(), dictionary
        self.register_buffer("atoms", dictionary.atoms)

    def forward(self, *given: Any) -> Tensor:
        output: Tensor = self.module(*given)
        channels = self._dictionary.atoms.shape[1]
        dim = 1 if output.ndim == 4 and output.shape[1] == channels else -1
        values, atoms = output.movedim(dim, -1), self._dictionary.atoms.to(output)
        codes = self._dictionary.encode(values)
        rest = values - codes @ atoms
        passed = self.codes(codes.movedim(-1, dim)).movedim(dim, -1)
        whole: Tensor = passed @ atoms + rest
        return whole.movedim(-1, dim)


# timm looks for weights where the network that is named has its own; a file has to stand here.
default_cfgs = generate_default_cfgs({"with_dictionary": {"file": __file__}})


@register_model
def with_dictionary(
    pretrained: bool = False,
    network: str = "vetoed_shapes_resnet",
    layer: str = "layer4",
    dictionary: str = "",
    key: str | None = None,
    top: int | None = None,
    **arguments: Any,
) -> nn.Module:
    """Return a timm model with a dictionary spliced in behind a layer; without one each is itself.

    Args:
        pretrained: Whether the network is.
        network: A timm model.
        layer: Whose output the dictionary is of; its atoms are the channels of `LAYER.codes`.
        dictionary: The file, as `Dictionary` takes it, and so are the next.
        key: What the atoms are called in it.
        top: How many codes are kept.
        **arguments: Further ones of timm's.
    """
    given = arguments.pop("pretrained_cfg", None)
    if state := getattr(given, "state_dict", None):  # a file of weights for it
        own = {"state_dict": state, "file": "", "url": "", "hf_hub_id": None, "source": ""}
        arguments["pretrained_cfg_overlay"] = own
    model: nn.Module = timm.create_model(network, pretrained=pretrained, **arguments)
    try:
        module = model.get_submodule(layer)
    except AttributeError as error:
        raise InputError(f"{network} has no layer {layer!r}") from error
    if dictionary:
        model.set_submodule(layer, Spliced(module, Dictionary(dictionary, key, top)))
    return model
