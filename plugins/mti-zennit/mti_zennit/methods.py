"""The methods: relevance, which is conserved from module to module, and gradients that are bent."""

from typing import Literal, final, get_args

import torch
from timm.data import resolve_data_config
from torch import Tensor, nn
from zennit import composites
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.core import Composite

from mti_lightning import Attribution, InputError, Pass
from mti_zennit.rules import registered

Rules = Literal[
    "epsilon",
    "epsilon_plus",
    "epsilon_plus_flat",
    "epsilon_gamma_box",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
]
Bend = Literal["none", "beta_smooth", "guided_backprop", "deconvnet"]


def _check(what: str, given: str, choices: tuple[str, ...]) -> None:
    if given not in choices:
        raise InputError(f"{what} {given!r} is none of {', '.join(choices)}")


@final
class Relevance(Attribution):
    """Layer-wise relevance propagation by zennit's composites: A is the relevance.

    For convolutional networks whose parts are modules: convolutions, linear layers, activation
    functions, batch norms, pools, shortcuts. Others are refused. Batch norms are merged into the
    convolutions before them for as long as it takes. The first layer below the feature gets the ε
    rule; how much inhibition is added further down depends on the rules: those of `epsilon` keep
    what act×grad says, `epsilon_alpha2_beta1` finds some in every convolution, `epsilon_plus` none.

    Args:
        composite: The rules, by zennit's names; `epsilon` is that rule for all layers.
        epsilon: Added to the denominators of linear layers, and of all layers for `epsilon`.
        gamma: How much `epsilon_gamma_box` favours positive weights.

    Raises:
        InputError: If there is no such composite.
    """

    differentiable = True
    additive = False
    needs_baseline = False

    def __init__(
        self, composite: Rules = "epsilon_plus", epsilon: float = 1e-6, gamma: float = 0.25
    ) -> None:
        _check("composite", composite, get_args(Rules))
        self.composite, self.epsilon, self.gamma = composite, epsilon, gamma

    def _rules(self, network: nn.Module) -> Composite:
        canonizers = [SequentialMergeBatchNorm()]
        if self.composite == "epsilon":
            rule = composites.Epsilon(epsilon=self.epsilon)
            layers = [*composites.layer_map_base(), (composites.Linear, rule)]
            return composites.LayerMapComposite(layers, canonizers=canonizers)
        kind = composites.COMPOSITES[self.composite]
        if self.composite == "epsilon_gamma_box":
            # The range of normalised pictures, which the first convolution's rule asks for.
            config = resolve_data_config(model=network)  # type: ignore[no-untyped-call]
            mean, std = (torch.tensor(config[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
            low, high = -mean / std, (1 - mean) / std
            return kind(low, high, epsilon=self.epsilon, gamma=self.gamma, canonizers=canonizers)
        return kind(epsilon=self.epsilon, canonizers=canonizers)

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        activations = forward.activations.clone()
        with registered(forward.network, self._rules(forward.network)) as trace:
            responses = forward.head(activations)
            trace.start(responses, activations, self.epsilon)
            (relevance,) = torch.autograd.grad(
                responses.sum(), activations, create_graph=create_graph
            )
        return relevance


@final
class ModifiedGradient(Attribution):
    """Activation times gradient, the gradient of ReLUs bent as zennit's composites do.

    Args:
        composite: `none`: plain, as act×grad. `beta_smooth`: the slope of a softplus, which itself
            has a slope, for `MaximallyTense`. `guided_backprop`, `deconvnet`: negative gradients
            are dropped.
        beta: How sharp `beta_smooth` bends.

    Raises:
        InputError: If there is no such composite.
    """

    differentiable = True
    additive = False
    needs_baseline = False

    def __init__(self, composite: Bend = "beta_smooth", beta: float = 10.0) -> None:
        _check("composite", composite, get_args(Bend))
        self.composite, self.beta = composite, beta

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        if self.composite == "none":
            rules = Composite()
        elif self.composite == "beta_smooth":
            rules = composites.BetaSmooth(self.beta)
        else:
            rules = composites.COMPOSITES[self.composite]()
        activations = forward.activations.clone()
        with registered(forward.network, rules):
            (gradient,) = torch.autograd.grad(
                forward.head(activations).sum(), activations, create_graph=create_graph
            )
        return activations * gradient
