"""Random streams: the same anywhere, and no two alike."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mti_lightning.images.seeds import START, derive_seed, generator_at

PARTS = (7, "fc:3@peak", "owl.jpg", None, 2.5, ("a", 1))
KEY, DRAWN = -6380272388394615532, [0.7687088, 0.8331308]


def draw(key: int, step: int) -> list[float]:
    return torch.rand(64, generator=generator_at(key, step)).tolist()


def test_other_processes_draw_the_same() -> None:
    code = (
        "import torch; from mti_lightning.images.seeds import generator_at, derive_seed\n"
        f"key = derive_seed(*{PARTS!r}); torch.manual_seed(99)\n"
        "print([key, torch.rand(64, generator=generator_at(key, 5)).tolist()])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    key = derive_seed(*PARTS)
    assert done.stdout.strip() == str([key, draw(key, 5)])


def test_keys_are_these_for_ever() -> None:
    """Another key would render another picture from an old configuration."""
    assert derive_seed(0, "fc:3") == KEY
    assert draw(derive_seed(0, "fc:3"), START)[:2] == pytest.approx(DRAWN, abs=1e-7)


def test_steps_and_keys_draw_differently() -> None:
    keys = [derive_seed(seed, name) for seed in range(20) for name in ("owl", "ape")]
    drawn = {tuple(draw(key, step)) for key in keys for step in range(START, 50)}
    assert len(drawn) == 40 * 51


def test_high_bits_of_a_key_count() -> None:
    # PyTorch's own seed has 32 bits on CPU.
    assert draw(5, 0) != draw(5 + 2**32, 0)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-1, 10**6))
def test_streams_leave_the_global_generator_alone(key: int, step: int) -> None:
    before = torch.get_rng_state()
    first = draw(key, step)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert draw(key, step) == first


@given(st.lists(st.integers(0, 99) | st.text("ab1", max_size=3), min_size=1, max_size=4))
def test_a_key_is_of_its_parts_in_their_order(parts: list[object]) -> None:
    key = derive_seed(*parts)
    assert -(2**63) <= key < 2**63
    assert key == derive_seed(*map(str, parts))
    assert key != derive_seed(*parts, "")
    assert key != derive_seed("", *parts)
    if [*map(str, parts)] != [*map(str, parts)][::-1]:
        assert key != derive_seed(*parts[::-1])
