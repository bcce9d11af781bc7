"""The loss curve: one line an update while training runs, a CSV at the end, and a detector of spikes in it."""

import json
import math
import os
import statistics
import zlib
from collections import deque
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from pico.errors import PicoError
from pico.files import full_disk_named, write_atomic

WINDOW, THRESHOLD = 64, 6.0
"""Losses before, and robust deviations above them, that make a spike."""
HEADER = "step,tokens,learning_rate,train_loss,gradient_norm,heldout_loss"


@dataclass(frozen=True)
class Point:
    """One update as it is recorded; losses in nats a token."""

    step: int
    """Updates taken, this one included."""
    learning_rate: float
    train_loss: float
    """Loss of this update's batch, before the update."""
    gradient_norm: float
    """Before clipping."""
    heldout_loss: float | None = None
    """After the update; None where not measured."""


class Curve:
    """An append-only file of points, each with a checksum. It ends before the first line that is torn or altered."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Point]:
        """Returns all points from step 1 on, as far as they follow each other without a gap."""
        points: list[Point] = []
        if self.path.exists():
            for line in self.path.read_bytes().split(b"\n"):
                try:
                    *values, check = json.loads(line)
                    point = Point(*values)
                except (ValueError, TypeError):
                    break
                if check != _checksum(point) or point.step != len(points) + 1:
                    break
                points.append(point)
        return points

    def restart(self, step: int) -> None:
        """Drops all points after `step`, because training goes on from there."""
        write_atomic(self.path, "".join(map(_line, self.read()[:step])))

    def append(self, points: Iterable[Point]) -> None:
        """Adds points and flushes them to disk."""
        with full_disk_named(self.path), open(self.path, "a") as file:
            file.writelines(map(_line, points))
            file.flush()
            os.fsync(file.fileno())


def write_csv(points: Iterable[Point], tokens_per_step: int, path: Path) -> None:
    """Writes the finished curve: one row a step, nine significant digits (which tell all float32 values apart).

    A cell is empty where nothing was measured, or an update was left out because nothing finite was.
    """
    rows = [
        f"{point.step},{point.step * tokens_per_step},{point.learning_rate:.9g},{_cell(point.train_loss)},"
        f"{_cell(point.gradient_norm)},{_cell(point.heldout_loss)}"
        for point in points
    ]
    write_atomic(path, "\n".join([HEADER, *rows]) + "\n")


def nonfinite(point: Point) -> PicoError | None:
    """Returns an error that names the step, where its loss or gradient is not finite; else None."""
    for what, value in (("loss", point.train_loss), ("gradient norm", point.gradient_norm)):
        if not math.isfinite(value):
            return PicoError(
                f"the {what} of step {point.step} is {value}; the weights were not updated with it",
                mend="lower optimizer.lr, lengthen schedule.warmup_steps, set training.gradient_clip, or leave "
                "such updates out with training.on_nonfinite: skip",
            )
    return None


class SpikeDetector:
    """Finds spikes among losses that are given in order.

    The baseline is the median of the last `window` losses, the deviation 1.4826 times their median absolute deviation,
    as in `pico.analysis.metrics.gradient_noise.loss_spike_score`; so one spike does not hide the next. It watches only.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self._before: deque[float] = deque(maxlen=window)

    def baseline(self, loss: float) -> float | None:
        """Returns the median before, where `loss` is a spike above it; else None, as before the window is full."""
        found = None
        if len(self._before) == self._before.maxlen:
            centre = statistics.median(self._before)
            deviation = 1.4826 * statistics.median(abs(one - centre) for one in self._before)
            if loss > centre + THRESHOLD * deviation + 1e-9 * abs(centre):
                found = centre
        if math.isfinite(loss):
            self._before.append(loss)
        return found


def _cell(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.9g}"


def _line(point: Point) -> str:
    return json.dumps([*astuple(point), _checksum(point)]) + "\n"


def _checksum(point: Point) -> int:
    return zlib.crc32(json.dumps(astuple(point)).encode())
