"""Metrics: the functions of `signs`, one number for each picture, in order."""

import pickle

import pytest
import torch
from torch import Tensor
from torchmetrics.aggregation import CatMetric

from mti_lightning import ActivationLayout
from mti_lightning.attribution import signs
from mti_lightning.attribution.tension import Tension
from mti_lightning.objectives.metrics import PictureMetrics
from tests.attribution.layouts import layout_of

NAMES = {"response", "excitation", "inhibition", "tension", "balance", "cosine", "interference"}
MAP = layout_of((1, 3, 4, 4), 1)
TENSIONS = [
    Tension(),
    Tension("minimum", "nothing"),
    Tension("l2"),
    Tension("harmonic", "positions"),
]

tensions = pytest.mark.parametrize("tension", TENSIONS, ids=str)
layouts = pytest.mark.parametrize(
    "layout",
    [layout_of((1, *shape), dim) for shape, dim in [((3, 4, 4), 1), ((9, 3), -1), ((6,), 1)]],
)

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def draw(count: int, shape: tuple[int, ...]) -> Batch:
    return torch.randn(count, *shape), torch.randn(count), torch.rand(count), torch.rand(count)


def expected(batch: Batch, tension: Tension, layout: ActivationLayout = MAP) -> dict[str, Tensor]:
    attribution, response, cosine, index = batch
    plus, minus = tension.split(attribution, layout)
    return {
        "response": response,
        "excitation": plus,
        "inhibition": minus,
        "tension": tension(attribution, layout),
        "balance": signs.balance(plus, minus),
        "cosine": cosine,
        "interference": index,
    }


@tensions
@layouts
def test_values_in_the_order_of_the_updates(tension: Tension, layout: ActivationLayout) -> None:
    metrics = PictureMetrics(tension, layout)
    batches = [draw(count, layout.shape) for count in (3, 1, 4)]
    for batch in batches:
        metrics.update(*batch)
    everything = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    values = metrics.compute()
    assert values.keys() == NAMES
    for name, wanted in expected(everything, tension, layout).items():
        torch.testing.assert_close(values[name], wanted, rtol=1e-5, atol=1e-6)


def test_what_was_measured_before_a_reset_is_gone() -> None:
    metrics = PictureMetrics(Tension(), MAP)
    metrics.update(*draw(3, (3, 4, 4)))
    metrics.reset()
    batch = draw(2, (3, 4, 4))
    metrics.update(*batch)
    for name, wanted in expected(batch, Tension()).items():
        torch.testing.assert_close(metrics.compute()[name], wanted)


def test_states_of_two_processes_are_joined() -> None:
    one, two = (PictureMetrics(Tension(), MAP) for _ in range(2))
    batches = draw(3, (3, 4, 4)), draw(2, (3, 4, 4))
    one.update(*batches[0])
    two.update(*batches[1])
    everything = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    for name, wanted in expected(everything, Tension()).items():
        both = [one[name], two[name]]

        def gather(values: Tensor, group: object, both: list[CatMetric] = both) -> list[Tensor]:
            return [torch.cat(metric.value) for metric in both]

        own = one[name].compute()
        one[name].sync(dist_sync_fn=gather, distributed_available=lambda: True)
        torch.testing.assert_close(one[name].value, wanted)
        one[name].unsync()
        assert torch.equal(torch.cat(one[name].value), own)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_merged_and_pickled(name: str) -> None:
    one, two = (PictureMetrics(Tension(), MAP) for _ in range(2))
    batches = draw(3, (3, 4, 4)), draw(2, (3, 4, 4))
    one.update(*batches[0])
    two.update(*batches[1])
    copied = pickle.loads(pickle.dumps(two))[name]
    copied.merge_state(one[name])
    wanted = [expected(batch, Tension())[name] for batch in batches]
    torch.testing.assert_close(copied.compute(), torch.cat(wanted))


def test_half_precision_is_summed_in_full() -> None:
    attribution, response, cosine, index = draw(2, (512, 8, 8))
    lower = attribution.bfloat16()
    metrics = PictureMetrics(Tension(summed="nothing"), layout_of(lower.shape, 1))
    metrics.update(lower, response.bfloat16(), cosine.bfloat16(), index.bfloat16())
    plus = lower.double().clamp(min=0).sum((1, 2, 3))
    torch.testing.assert_close(metrics.compute()["excitation"].double(), plus, rtol=1e-5, atol=0)


def test_what_was_given_is_let_go() -> None:
    attribution, response, cosine, index = draw(2, (3, 4, 4))
    before = response.clone()
    metrics = PictureMetrics(Tension(), MAP)
    metrics.update(attribution.requires_grad_(), response.requires_grad_(), cosine, index)
    response.detach().zero_()
    assert torch.equal(metrics.compute()["response"], before)
    assert not any(value.requires_grad for value in metrics.compute().values())


def test_objectives_without_a_target_have_no_cosine() -> None:
    attribution, response, _, index = draw(2, (3, 4, 4))
    metrics = PictureMetrics(Tension(), MAP)
    metrics.update(attribution, response, torch.full((2,), torch.nan), index)
    assert metrics.compute()["cosine"].isnan().all()
