"""The list of behavioural and landscape metrics, and how one of their values is made.

The values are `pico.analysis.metrics.registry.Measurement`s, as in the rest of the analysis. Here `n` counts the
samples behind a value (tokens, positions, prompts) and `p` is the width of what was looked at: the vocabulary for
predictions, the row length for attention, the number of parameters for the landscape.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pico.analysis.metrics.registry import STATUSES, Measurement

BEHAVIOUR, LANDSCAPE = "behaviour", "landscape"

F = TypeVar("F", bound=Callable)


@dataclass(frozen=True)
class Entry:
    """One metric, for lists of metrics."""

    name: str
    data_type: str
    """BEHAVIOUR or LANDSCAPE: the table's `data_type`."""
    definition: str
    source: str


CATALOGUE: dict[str, Entry] = {}


def listed(name: str, *, data_type: str = BEHAVIOUR, definition: str, source: str) -> Callable[[F], F]:
    """Enters the metric that the decorated function measures into CATALOGUE. The function itself stays as it is."""

    def enter(function: F) -> F:
        if name in CATALOGUE:
            raise ValueError(f"a behavioural metric named {name!r} is listed already")
        CATALOGUE[name] = Entry(name, data_type, definition, source)
        return function

    return enter


def measured(value: float, n: int, p: int) -> Measurement:
    """A value, or `nonfinite` where it is NaN or infinite, or `n_too_small` where nothing was there to be measured."""
    if n == 0:
        return undefined("n_too_small", n, p)
    if not math.isfinite(value):
        return undefined("nonfinite", n, p)
    return Measurement(float(value), "ok", int(n), int(p))


def undefined(status: str, n: int, p: int) -> Measurement:
    """No value, and why."""
    assert status in STATUSES
    return Measurement(None, status, int(n), int(p))
