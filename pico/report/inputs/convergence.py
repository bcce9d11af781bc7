"""Time to stability of every layer, and its order over the sizes of the models.

Diehl Martinez et al. 2024 ("Tending Towards Stability", arXiv 2410.11451) compare each layer's activations at every
checkpoint with those of the last by CKA, and find that large models become stable early in training, small ones later
and less. Here that is a number a layer: the first step from which the similarity stays at or above a level. The last
checkpoint itself doesn't count: compared with itself anything is similar. Debiased CKA is used because linear CKA of
unrelated data is far from 0 where features are many, and would call a layer stable that isn't.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from pico.report.inputs.dynamics import HELDOUT_SPLIT, Dynamics

LEVEL = 0.9
"""Similarity from which a layer counts as stable."""
EARLY = 0.2
"""The share of training within which, by the paper, large models become stable."""


@dataclass(frozen=True)
class Stability:
    """The time to stability of one layer of one run."""

    run: str
    module: str | None
    layer: int
    step: float | None
    """The step from which it is stable, interpolated; None where it never is."""
    fraction: float | None
    """`step` over the last step."""
    early: float | None
    """Similarity to the last checkpoint after EARLY of training, interpolated; None where it is not known."""


@dataclass(frozen=True)
class RunStability:
    """The layers of one run together."""

    run: str
    layers: int
    """Number of curves: layers times captured modules."""
    stable: int
    """Number of them that are stable before the last checkpoint."""
    stable_early: int
    """Number of them that are stable within EARLY of training."""
    median: float | None
    """Median share of training until stable, those that never are counting as later than all; None where that is
    the middle."""
    early: float | None
    """Mean similarity to the last checkpoint after EARLY of training."""


def time_to_stability(steps: Sequence[float], values: Sequence[float | None], level: float = LEVEL) -> float | None:
    """Returns the first step from which `values` stay at or above `level`; None where they don't before the last step.

    steps: ascending, the last being the checkpoint compared with. values: similarity to that one; None or NaN: not
    known, which counts as below. Rule of interpolation: between the last checkpoint below and the one after it, the
    value is taken as linear in ln(1 + step), the axis on which checkpoints are evenly spread; where that value is not
    known, the later step is given. Raises ValueError where lengths differ or steps don't ascend.
    """
    if len(steps) != len(values) or any(later <= sooner for sooner, later in pairwise(steps)):
        raise ValueError(f"{len(steps)} steps, to be ascending, with {len(values)} values")
    known = [math.nan if value is None else value for value in values]
    start = len(known) - 1
    while start > 0 and known[start - 1] >= level:
        start -= 1
    if start >= len(known) - 1:
        return None
    if start == 0 or math.isnan(known[start - 1]):
        return float(steps[start])
    share = (level - known[start - 1]) / (known[start] - known[start - 1])
    before, after = math.log1p(steps[start - 1]), math.log1p(steps[start])
    return min(float(steps[start]), math.expm1(before + share * (after - before)))


def similarity_at(steps: Sequence[float], values: Sequence[float | None], step: float) -> float | None:
    """Returns the value at `step`, linear in ln(1 + step) between checkpoints; None where a neighbour is not known."""
    for (left, low), (right, high) in pairwise(zip(steps, values, strict=True)):
        if left <= step <= right:
            if None in (low, high) or math.isnan(low + high):  # type: ignore[operator]
                return None
            share = (math.log1p(step) - math.log1p(left)) / (math.log1p(right) - math.log1p(left))
            return low + share * (high - low)  # type: ignore[operator]
    return None


def stability(dynamics: Dynamics, run: str, level: float = LEVEL) -> list[Stability]:
    """Returns the time to stability of every layer and module of a run, in order of module and layer.

    Looks only at comparisons of held-out activations with the last step. Empty where there are none.
    """
    rows = dynamics.select("debiased_cka", "simple", "activations", HELDOUT_SPLIT)
    last = max(rows["step"].to_pylist(), default=None)
    curves: dict[tuple[str | None, int], dict[int, float | None]] = {}
    columns: Any = (rows[name].to_pylist() for name in ("module", "layer", "step", "target_step", "value"))
    for module, layer, step, target, value in zip(*columns, strict=True):
        if target == last:
            curves.setdefault((module, layer), {})[step] = value
    found = []
    for (module, layer), curve in sorted(curves.items(), key=lambda item: (item[0][0] or "", item[0][1])):
        steps = sorted(curve)
        values = [curve[step] for step in steps]
        time = time_to_stability(steps, values, level)
        fraction = None if time is None else time / steps[-1]
        found.append(Stability(run, module, layer, time, fraction, similarity_at(steps, values, EARLY * steps[-1])))
    return found


def summarise(found: Sequence[Stability], runs: Sequence[str]) -> list[RunStability]:
    """Returns one summary a run, in the order of `runs`; leaves out runs without any curve."""
    summaries = []
    for run in runs:
        own = [one for one in found if one.run == run]
        if not own:
            continue
        times = [math.inf if one.fraction is None else one.fraction for one in own]
        middle = median(times)
        early = [one.early for one in own if one.early is not None]
        summaries.append(
            RunStability(
                run=run,
                layers=len(own),
                stable=sum(time < math.inf for time in times),
                stable_early=sum(time <= EARLY for time in times),
                median=middle if middle < math.inf else None,
                early=fmean(early) if early else None,
            )
        )
    return summaries


def concordance(values: Sequence[float | None]) -> float | None:
    """Returns Kendall's tau-a of `values` with their own order: 1 rising throughout, -1 falling.

    For values in order of the models' sizes; a None among them counts as the largest. None with fewer than two.
    """
    numbers = [math.inf if value is None else value for value in values]
    pairs = [(a < b) - (a > b) for index, a in enumerate(numbers) for b in numbers[index + 1 :]]
    return fmean(pairs) if pairs else None
