"""Measurements of a run's training as a whole, at each checkpoint: gradient noise and loss spikes."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from pico.analysis.engine.choices import SPLITS
from pico.analysis.engine.components import MODEL
from pico.analysis.engine.table import Row, make_row
from pico.analysis.metrics.registry import DATA_TYPES, Measurement, compute, get_metric
from pico.checkpoint import DYNAMICS, Checkpoint
from pico.files import canonical_json

OF_TRAINING = frozenset({DATA_TYPES["N"], DATA_TYPES["L"]})
WINDOW = 4
"""Checkpoints, the present one included, over which the moments of gradients are averaged: those of one are noisy, and
over many the noise scale itself changes."""
LEFT_OUT = 1e30
"""For the loss of an update that was left out because it was not finite: a spike, which no median feels."""


def of_training(metrics: tuple[str, ...]) -> tuple[str, ...]:
    """Returns those metrics that are measured here."""
    return tuple(name for name in metrics if OF_TRAINING & set(get_metric(name).data_types))


def measure_training(run: str, folders: tuple[Path, ...], metrics: tuple[str, ...], curve: Path) -> list[Row]:
    """Measures a run up to the last of `folders`, its checkpoints, oldest first; a task for any worker.

    run: the model's name, as the table has it. metrics: see `of_training`. Norms and the loss (curve: training.csv,
    which somebody else's model does not have) are measured only where they were recorded.
    """
    checkpoint = Checkpoint(folders[-1])
    step, tokens = checkpoint.step, int(checkpoint.trainer["tokens"])

    def row(metric: str, split: str | None, settings: dict[str, Any], found: Measurement) -> Row:
        return make_row(
            found,
            run=run,
            step=step,
            tokens=tokens,
            metric=metric,
            params=canonical_json(get_metric(metric).parameters | settings),
            component="model",
            data_type=get_metric(metric).data_types[0],
            layer=MODEL,
            split=split,
            rank=None,
            input_dtype="float64" if split else "float32",
        )

    rows = []
    of_norms = [name for name in metrics if DATA_TYPES["N"] in get_metric(name).data_types]
    for split in SPLITS if of_norms else ():
        if norms := _norms(folders[-WINDOW:], split):
            small, large, sizes = norms
            settings = sizes | {"checkpoints": len(small)}
            rows += [row(name, split, settings, compute(name, small, large, **sizes)) for name in of_norms]
    losses = _losses(curve, step)
    for name in metrics:
        if losses is not None and DATA_TYPES["L"] in get_metric(name).data_types:
            rows.append(row(name, None, {}, compute(name, losses)))
    return rows


def _norms(folders: tuple[Path, ...], split: str) -> tuple[np.ndarray, np.ndarray, dict[str, float]] | None:
    """Returns squared gradient norms, (checkpoints, small batches) and (checkpoints, 1), and the batch sizes."""
    found, sizes = [], {}
    for folder in folders:
        path = folder / DYNAMICS / f"{split}_gradient_norms.safetensors"
        if not path.exists():
            return None
        with safe_open(path, framework="np") as file:
            found.append(sum(file.get_tensor(name) for name in file.keys()))  # noqa: SIM118
            sizes = {f"{kind}_batch": float(json.loads(value)) for kind, value in (file.metadata() or {}).items()}
    squares = np.stack(found)
    return squares[:, :-1], squares[:, -1:], sizes


def _losses(path: Path, step: int) -> np.ndarray | None:
    """Returns the training loss of every update up to `step`, (step, 1). None without a curve."""
    if not path.exists() or step == 0:
        return None
    with open(path, newline="") as file:
        cells = [line["train_loss"] for line in csv.DictReader(file)][:step]
    return np.array([float(cell or LEFT_OUT) for cell in cells])[:, None]
