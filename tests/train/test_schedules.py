"""Learning rates and checkpoint steps: known values at the corners, and what holds everywhere."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pico.config import Schedule
from pico.train.checkpoints import checkpoint_steps
from pico.train.schedules import learning_rate


def rate(update: int, kind: str = "linear", warmup: int = 10, final: float = 0.0, steps: int = 110) -> float:
    schedule = Schedule(kind=kind, warmup_steps=warmup, final_fraction=final, restart_every=40, restart_warmup_steps=4)  # type: ignore[arg-type]
    return learning_rate(update, steps=steps, peak=2.0, schedule=schedule)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "wsd", "jagged_cosine"])
def test_warm_up_is_linear_and_reaches_the_peak(kind):
    assert [rate(update, kind) for update in range(10)] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rate(10, kind) == 2.0


def test_decays():
    assert rate(60) == pytest.approx(1.0)
    assert rate(109) == pytest.approx(0.02)
    assert rate(60, final=0.5) == pytest.approx(1.5)
    assert rate(60, "cosine") == pytest.approx(1.0)
    assert rate(35, "cosine", final=0.1) == pytest.approx(2 * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2))
    assert rate(109, "constant") == 2.0


def test_wsd_is_flat_and_then_falls_in_a_line():
    assert [rate(update, "wsd") for update in (10, 50, 88)] == [2.0, 2.0, 2.0]
    assert rate(99, "wsd") == pytest.approx(1.0)  # half-way through the last fifth of 110 steps
    assert rate(109, "wsd", final=0.1) == pytest.approx(2 * (0.1 + 0.9 / 22))


def test_a_jagged_cosine_is_the_cosine_but_for_the_rise_after_each_restart():
    plain, jagged = ([rate(update, kind, final=0.1) for update in range(110)] for kind in ("cosine", "jagged_cosine"))
    rises = {40: 0.25, 41: 0.5, 42: 0.75, 80: 0.25, 81: 0.5, 82: 0.75}
    assert jagged == pytest.approx([rises.get(update, 1.0) * value for update, value in enumerate(plain)])


@given(st.sampled_from(["linear", "cosine", "wsd"]), st.integers(0, 50), st.floats(0, 1), st.integers(60, 400))
def test_no_update_is_at_zero_and_the_rate_never_rises_after_warm_up(kind, warmup, final, steps):
    rates = [rate(update, kind, warmup, final, steps) for update in range(steps)]
    assert all(0 < value <= 2.0 for value in rates)
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rates[warmup:], rates[warmup + 1 :], strict=False))


def test_checkpoint_steps_known():
    assert checkpoint_steps(600, 100) == [0, 1, 2, 4, 8, 16, 32, 64, 100, 200, 300, 400, 500, 600]
    assert checkpoint_steps(10, 4) == [0, 1, 2, 4, 8, 10]
    assert checkpoint_steps(3, 100) == [0, 1, 2, 3]


@given(st.integers(1, 5000), st.integers(1, 1000))
def test_checkpoint_steps_ascend_from_first_to_last(steps, every):
    kept = checkpoint_steps(steps, every)
    assert kept == sorted(set(kept))
    assert (kept[0], kept[-1]) == (0, steps)
    assert set(range(0, steps + 1, every)) <= set(kept)
