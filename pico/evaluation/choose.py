"""Which checkpoints of a run are benchmarked: the first, the last, and others evenly spread over log-steps."""

from collections.abc import Sequence
from math import log1p


def choose_steps(steps: Sequence[int], count: int) -> list[int]:
    """At most `count` of `steps`, ascending. One alone is the last; of two or more, the first and the last are two.

    The others are those nearest, in log(1 + step), to evenly spaced marks between these two: early training, where most
    changes, gets as much room as late training. Never fewer than asked for while there are enough steps.
    """
    left = sorted(set(steps))
    if count < 1:
        raise ValueError(f"count = {count}: at least one checkpoint is chosen")
    if len(left) <= count:
        return left
    if count == 1:
        return left[-1:]
    first, last = left[0], left[-1]
    chosen = [first, last]
    left = left[1:-1]
    for mark in range(1, count - 1):
        target = log1p(first) + (log1p(last) - log1p(first)) * mark / (count - 1)
        nearest = min(left, key=lambda step: (abs(log1p(step) - target), step))
        left.remove(nearest)
        chosen.append(nearest)
    return sorted(chosen)
