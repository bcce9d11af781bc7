"""The learning rate of every update: a pure function of its number, so that a resume needs no state."""

import math

from pico.config import Schedule


def learning_rate(update: int, *, steps: int, peak: float, schedule: Schedule) -> float:
    """Returns the learning rate of update `update` (0-based) of `steps`.

    Warm-up rises linearly and reaches `peak` with update warmup_steps - 1. A decay is such that `final_fraction` of the
    peak would be reached with update `steps`, one past the last: no update is spent at zero.
    """
    if update < schedule.warmup_steps:
        return peak * (update + 1) / schedule.warmup_steps
    floor = schedule.final_fraction
    return peak * (floor + (1 - floor) * _left(update, steps, schedule)) * _after_restart(update, schedule)


def _left(update: int, steps: int, schedule: Schedule) -> float:
    """Returns what is left of the decay after warm-up: from 1 down to 0."""
    start = schedule.warmup_steps
    if schedule.kind == "wsd":  # warm-up, stable, decay (MiniCPM, arXiv 2404.06395); linear (arXiv 2405.18392)
        start = max(start, steps - round(schedule.decay_fraction * steps))
    progress = max(0, update - start) / max(1, steps - start)
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind in ("cosine", "jagged_cosine"):  # SGDR, arXiv 1608.03983
        return (1 + math.cos(math.pi * progress)) / 2
    return 1 - progress


def _after_restart(update: int, schedule: Schedule) -> float:
    """Returns the rise from 0 that follows each restart of a jagged cosine (ReLoRA, arXiv 2307.05695); else 1."""
    if schedule.kind != "jagged_cosine" or update < schedule.restart_every:
        return 1.0
    since = update % schedule.restart_every
    return min(1.0, (since + 1) / max(1, schedule.restart_warmup_steps))
