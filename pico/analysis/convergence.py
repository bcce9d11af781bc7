"""Convergence of representations: time to stability of every layer, and its order with the size of the model.

Diehl Martinez et al. 2024 ("Tending Towards Stability", arXiv 2410.11451) compare each layer's activations at every
checkpoint with those of the last by CKA, and find that large models settle early in training, small ones later and
less. Here that is a number a layer: the first step from which the similarity stays at or above a level. The last
checkpoint itself doesn't count: compared with itself anything is similar. Debiased CKA is the default because linear
CKA of unrelated data is far from 0 where features are many, and would call a layer settled that isn't.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

LEVEL = 0.9
"""Similarity from which a layer counts as settled, unless another is asked for."""
EARLY = 0.2
"""The share of training within which, by the paper, large models settle."""
ELSEWHERE = ("target_layer", "target_run")
"""Columns, or keys of `params`, that say the comparison is not with the same layer of the same run."""


@dataclass(frozen=True)
class Stability:
    """The stability of one layer of one run."""

    run: str
    component: str
    module: str | None
    layer: int
    head: int | None
    step: float | None
    """Interpolated; None where it never does."""
    fraction: float | None
    """`step` over the last step."""
    early: float | None
    """Similarity to the last checkpoint after EARLY of training, interpolated; None where it is not known."""


@dataclass(frozen=True)
class Settling:
    """The layers of one run together."""

    run: str
    layers: int
    """The number of curves: layers times captured modules (times heads)."""
    settled: int
    """The number of those that settle before the last checkpoint."""
    settled_early: int
    """The number within EARLY of training."""
    median: float | None
    """Median share of training until settled, those that never do counting as later than all; None where that is
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


def stability(
    table: "pyarrow.Table",
    *,
    level: float = LEVEL,
    metric: str = "debiased_cka",
    component: str = "simple",
    data_type: str = "activations",
    split: str | None = "val",
) -> list[Stability]:
    """Returns the time to stability of every layer, module and head in a table (see pico.analysis.engine.table).

    The table may hold several runs. Only comparisons with the last step of the same run and layer are looked at.
    Gives nothing where there are none; in order of run, module, layer, head.
    """
    import pyarrow.compute as pc

    wanted = (pc.field("metric") == metric) & (pc.field("component") == component)
    wanted &= (pc.field("data_type") == data_type) & pc.field("target_step").is_valid()
    if split is not None:
        wanted &= pc.field("split") == split
    columns = ("run", "params", "layer", "head", "step", "target_step", "value")
    named = [name for name in ELSEWHERE if name in table.column_names]
    for name in named:
        wanted &= pc.field(name).is_null() | (pc.field(name) == pc.field(name.removeprefix("target_")))
    rows = table.select([*columns, "metric", "component", "data_type", "split", *named]).filter(wanted)
    last: dict[str, int] = {}
    for run, step in zip(rows["run"].to_pylist(), rows["step"].to_pylist(), strict=True):
        last[run] = max(step, last.get(run, step))
    curves: dict[tuple[Any, ...], dict[int, float | None]] = {}
    for run, params, layer, head, step, target, value in zip(
        *(rows[name].to_pylist() for name in columns), strict=True
    ):
        if target == last[run]:
            curves.setdefault((run, params or "{}", layer, head), {})[step] = value
    found = []
    for (run, params, layer, head), curve in curves.items():
        settings = json.loads(params)
        if any(key in settings for key in ELSEWHERE):
            continue
        steps = sorted(curve)
        values = [curve[step] for step in steps]
        settled = time_to_stability(steps, values, level)
        fraction = None if settled is None else settled / steps[-1]
        early = similarity_at(steps, values, EARLY * steps[-1])
        found.append(Stability(run, component, settings.get("module"), layer, head, settled, fraction, early))
    return sorted(found, key=lambda one: (one.run, one.module or "", one.layer, -1 if one.head is None else one.head))


def settling(found: Sequence[Stability], runs: Sequence[str]) -> list[Settling]:
    """Returns a summary a run, in the order of `runs`, for those that have any curve."""
    summaries = []
    for run in runs:
        own = [one for one in found if one.run == run]
        if not own:
            continue
        times = sorted(math.inf if one.fraction is None else one.fraction for one in own)
        middle = (times[(len(times) - 1) // 2] + times[len(times) // 2]) / 2
        early = [one.early for one in own if one.early is not None]
        summaries.append(
            Settling(
                run=run,
                layers=len(own),
                settled=sum(time < math.inf for time in times),
                settled_early=sum(time <= EARLY for time in times),
                median=middle if middle < math.inf else None,
                early=fmean(early) if early else None,
            )
        )
    return summaries


def concordance(values: Sequence[float | None]) -> float | None:
    """Computes Kendall's tau-a of `values` with their own order: 1 rising, -1 falling; None counts as the largest.

    For values in order of size of the model. None with fewer than two of them.
    """
    numbers = [math.inf if value is None else value for value in values]
    pairs = [(a < b) - (a > b) for index, a in enumerate(numbers) for b in numbers[index + 1 :]]
    return fmean(pairs) if pairs else None
