"""The tables behind `dvc plots`: loss, held-out bits per byte against size, CKA to the last checkpoint, benchmarks."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pico.files import write_atomic
from pico.report.inputs.dynamics import HELDOUT_SPLIT
from pico.report.inputs.suite import Suite

HEADERS = {
    "loss.csv": ("model", "step", "train_loss", "heldout_loss"),
    "scaling.csv": (
        "model",
        "parameters",
        "non_embedding_parameters",
        "heldout_bits_per_byte",
        "unigram_bits_per_byte",
    ),
    "cka.csv": ("model", "parameters", "module", "layer", "step", "cka_to_final"),
    "benchmarks.csv": ("model", "task", "step", "value", "low", "high", "chance"),
}


def write_plots(suite: Suite, folder: Path) -> None:
    """Writes the four tables, long form, one observation a row; empty cells where a value is missing."""
    for (name, header), rows in zip(HEADERS.items(), (_loss, _scaling, _cka, _benchmarks), strict=True):
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([_cell(value) for value in row] for row in rows(suite))
        write_atomic(folder / name, buffer.getvalue())


def _cell(value: Any) -> Any:
    """Formats numbers to seven significant digits; nothing where there is no number."""
    if isinstance(value, float):
        return f"{value:.7g}" if np.isfinite(value) else ""
    return "" if value is None else value


def _loss(suite: Suite) -> Iterable[Sequence[Any]]:
    for model in suite.models:
        curve = model.training
        points = {round(float(step)): [value, None] for step, value in zip(*curve.smoothed, strict=True)}
        keep = np.isfinite(curve.heldout_loss)
        for step, value in zip(curve.step[keep], curve.heldout_loss[keep], strict=True):
            points.setdefault(int(step), [None, None])[1] = value
        for step in sorted(points):
            yield model.name, step, *(None if value is None else float(value) for value in points[step])


def _scaling(suite: Suite) -> Iterable[Sequence[Any]]:
    for model in suite.models:
        value = model.last["heldout"]["all"]["bits_per_byte"]
        yield model.name, model.parameters, model.non_embedding_parameters, value, suite.unigram()


def _cka(suite: Suite) -> Iterable[Sequence[Any]]:
    for model in suite.models:
        metric = model.dynamics.cka or ""
        for module in model.dynamics.modules(metric, "simple", "activations"):
            grid = model.dynamics.grid(metric, "simple", "activations", split=HELDOUT_SPLIT, module=module)
            for layer, values in zip(grid.layers, grid.values, strict=True):
                for step, value in zip(grid.steps, values, strict=True):
                    yield model.name, model.parameters, module, layer, step, float(value)


def _benchmarks(suite: Suite) -> Iterable[Sequence[Any]]:
    for model in suite.models:
        for task in suite.tasks:
            for step, value, error in zip(*model.benchmark(task), strict=True):
                low, high = float(value - error), float(value + error)
                yield model.name, task, int(step), float(value), low, high, suite.chance(task)
