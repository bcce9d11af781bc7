"""The learning rate of every update: a pure function of its number, so that a resume needs no state."""

import math

from pico.config import Schedule


def learning_rate(update: int, *, steps: int, peak: float, schedule: Schedule) -> float:
    """The learning rate of update `update` (0-based) of `steps`.

    Warm-up rises linearly and reaches `peak` with update warmup_steps - 1. The decay starts there, and is such that
    `final_fraction` of the peak would be reached with update `steps`, one past the last: no update is spent at zero.
    """
    if update < schedule.warmup_steps:
        return peak * (update + 1) / schedule.warmup_steps
    progress = (update - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
    if schedule.kind == "constant":
        return peak
    # `left` falls from 1 to 0; cosine as in SGDR (arXiv 1608.03983)
    left = 1 - progress if schedule.kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return peak * (schedule.final_fraction + (1 - schedule.final_fraction) * left)
