"""Spectra over training: singular values of one layer's weight against the Marchenko-Pastur edge.

A matrix of independent entries of standard deviation sigma, (m, n), has its singular values between
sigma (sqrt(max) - sqrt(min)) and sigma (sqrt(max) + sqrt(min)) (Marchenko & Pastur 1967). Over sigma sqrt(max) that is
1 - sqrt(q) to 1 + sqrt(q), q = min / max, at every step: what rises above the upper edge was learned.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open

from pico.analysis.metrics.matrix import singular_values

STEPS = 6
"""Checkpoints at most, spread over log-step: the first, the last and others between."""


@dataclass(frozen=True)
class Spectra:
    """Singular values of one weight at several steps."""

    module: str
    layer: int
    shape: tuple[int, int]
    steps: list[int]
    values: np.ndarray
    """(steps, min(shape)): descending, over sigma sqrt(max(shape)), sigma the root mean square entry of that step."""

    @property
    def edges(self) -> tuple[float, float]:
        """The Marchenko-Pastur edges, on the scale of `values`."""
        root = float(np.sqrt(min(self.shape) / max(self.shape)))
        return 1 - root, 1 + root


def read_spectra(checkpoints: list[Path], modules: list[str]) -> Spectra | None:
    """Of the middle layer, of the last of `modules` whose weight all checkpoints (by step) have; None if there is none.

    Reads that one tensor of each file, memory-mapped.
    """
    chosen = spread_steps([int(folder.name.removeprefix("step_")) for folder in checkpoints], STEPS)
    files = [folder / "model.safetensors" for folder in checkpoints if int(folder.name.removeprefix("step_")) in chosen]
    with safe_open(files[-1], framework="numpy") as file:
        names = list(file.keys())
    layers = sorted({int(name.split(".")[1]) for name in names if name.startswith("layers.")})
    layer = layers[len(layers) // 2] if layers else 0
    module = next((module for module in reversed(modules) if f"layers.{layer}.{module}.weight" in names), None)
    if module is None:
        return None
    weights = []
    for path in files:
        with safe_open(path, framework="numpy") as file:
            weights.append(file.get_tensor(f"layers.{layer}.{module}.weight").astype(np.float64))
    if not all(np.isfinite(weight).all() and weight.any() for weight in weights):
        return None
    values = [_scaled(weight) for weight in weights]
    return Spectra(module, layer, weights[0].shape, chosen, np.array(values))


def _scaled(weight: np.ndarray) -> np.ndarray:
    return singular_values(weight) / (np.sqrt(np.mean(weight**2)) * np.sqrt(max(weight.shape)))


def spread_steps(steps: list[int], count: int) -> list[int]:
    """At most `count` of the steps: first, last, and others evenly spread over log-step."""
    if len(steps) <= count:
        return steps
    places = np.geomspace(1, steps[-1] + 1, count) - 1
    return sorted({steps[int(np.abs(np.log1p(steps) - np.log1p(place)).argmin())] for place in places})
