"""Which checkpoints are evaluated."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pico.evaluation.parts import choose_steps

LAPTOP = [0, 1, 2, 4, 8, 16, 32, 64, 100, 200, 300, 400, 500, 600]


def test_the_choice_is_even_in_log_steps() -> None:
    assert choose_steps(LAPTOP, 5) == [0, 4, 32, 100, 600]


def test_one_is_the_last_and_two_are_the_ends() -> None:
    assert choose_steps(LAPTOP, 1) == [600]
    assert choose_steps(LAPTOP, 2) == [0, 600]


@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=60), st.integers(1, 80))
def test_as_many_as_asked_for_with_both_ends_whatever_the_order(steps: set[int], count: int) -> None:
    chosen = choose_steps(list(steps), count)
    assert len(chosen) == min(count, len(steps))
    assert set(chosen) <= steps
    assert chosen == sorted(chosen) == choose_steps(sorted(steps, reverse=True), count)
    assert chosen[-1] == max(steps)
    if count > 1:
        assert chosen[0] == min(steps)


def test_none_is_refused() -> None:
    with pytest.raises(ValueError, match="count = 0"):
        choose_steps(LAPTOP, 0)
