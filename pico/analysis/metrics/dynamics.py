"""Metrics of movement, from checkpoints alone: how far a parameter went, in which direction, and how straight."""

from functools import partial

import numpy as np

from pico.analysis.metrics.matrix import Array, Matrix, Trajectory, distance, shifted
from pico.analysis.metrics.registry import Undefined, metric, nonzero

movement = partial(metric, types="W", elementwise=True)


@movement(
    definition="|X - Y|_F / |Y|_F, Y the previous checkpoint's weight",
    source="You et al. 2017, arXiv 1708.03888",
    target="previous",
    default=True,
)
def relative_change(x: Matrix, y: Matrix) -> float:
    """Computes the distance from Y to X in lengths of Y."""
    before = shifted(y.values, -y.exponent)
    length = nonzero(float(np.linalg.norm(before)))
    return float(np.linalg.norm(shifted(x.values, -y.exponent) - before)) / length


@movement(
    definition="|X - Y|_F, Y the weight at initialisation",
    source="Nagarajan & Kolter 2019, arXiv 1901.01672",
    target="first",
)
def distance_from_initialization(x: Matrix, y: Matrix) -> float:
    """Computes the length of the way from initialisation to here, as the crow flies."""
    return distance(x, y)


@movement(
    definition="rms(X - Y) / steps / rms(X), Y the previous checkpoint's weight, `steps` optimiser steps before",
    source="Karpathy 2022, Building makemore part 3 (update to data ratio); You et al. 2017, arXiv 1708.03888",
    target="previous",
)
def update_to_weight_rms(x: Matrix, y: Matrix, *, steps: int = 1) -> float:
    """Computes the mean movement of one optimiser step beside the weight it moves; about 1e-3 is customary.

    Of the net movement: where the steps of an interval undo each other, the mean single update was larger.
    """
    length = nonzero(x.scaled(float(np.linalg.norm(x.unit_values()))))
    return distance(x, y) / length / steps


@movement(
    definition="<X, Y> / (|X| |Y|), X the change since the previous checkpoint, Y the change of the interval before",
    source="Guille-Escuret et al. 2024, arXiv 2306.11922",
    target="update",
)
def update_cosine(x: Matrix, y: Matrix) -> float:
    """Computes the cosine of successive updates: 1 on a straight line, about 0 in a random walk, -1 back and forth."""
    a, b = x.unit_values(), y.unit_values()
    lengths = nonzero(float(np.linalg.norm(a)) * float(np.linalg.norm(b)))
    return float(np.clip(np.vdot(a, b) / lengths, -1.0, 1.0))


@movement(
    definition="sum of |W_i - W_(i-1)|_F over the checkpoints up to X, over |X - W_0|_F; a straight line gives 1",
    source="Guille-Escuret et al. 2024, arXiv 2306.11922",
    target="path",
    elementwise=False,
)
def path_over_displacement(x: Matrix, path: Trajectory) -> float:
    """Computes the length of the way through the checkpoints over that of the straight line; at least 1."""
    displacement = nonzero(distance(x, path[0]))
    return path.length() / displacement


@movement(
    definition="|U^T V|_F^2 / k, U and V the k strongest left singular directions of X, and of the checkpoint before",
    source="Gur-Ari et al. 2018, arXiv 1812.04754",
    target="previous",
)
def subspace_overlap(x: Matrix, y: Matrix, *, k: int = 4) -> float:
    """Computes the share of the strongest k directions that stayed: 1 where all did, k / n by chance."""
    if k >= min(x.n, x.largest_rank, y.largest_rank):
        raise Undefined("n_too_small")
    left, right = (_directions(one, k) for one in (x, y))
    return min(1.0, float(np.sum((left.T @ right) ** 2)) / k)


def _directions(x: Matrix, k: int) -> Array:
    """Returns the strongest left singular directions, (n, k), from the Gram matrix of the smaller side."""
    rows = x.unit
    if x.spectrum[0] == 0 or x.rank < k:
        raise Undefined("zero" if x.spectrum[0] == 0 else "n_too_small")
    if rows.shape[0] <= rows.shape[1]:
        return np.linalg.eigh(rows @ rows.T)[1][:, -k:]
    right = np.linalg.eigh(rows.T @ rows)[1][:, -k:]
    return np.asarray(np.linalg.qr(rows @ right)[0])
