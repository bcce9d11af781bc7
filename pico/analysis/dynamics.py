"""Metrics of movement: how far a parameter went, in one interval or since initialisation."""

import numpy as np

from pico.analysis.matrix import Matrix, shifted
from pico.analysis.registry import Undefined, metric


@metric(
    definition="|X - Y|_F / |Y|_F, Y the previous checkpoint's weight",
    source="You et al. 2017, arXiv 1708.03888",
    types="W",
    target="previous",
    elementwise=True,
)
def relative_change(x: Matrix, y: Matrix) -> float:
    """How far X is from Y, in lengths of Y."""
    before = shifted(y.values, -y.exponent)
    length = float(np.linalg.norm(before))
    if length == 0:
        raise Undefined("zero")
    return float(np.linalg.norm(shifted(x.values, -y.exponent) - before)) / length


@metric(
    definition="|X - Y|_F, Y the weight at initialisation",
    source="Nagarajan & Kolter 2019, arXiv 1901.01672",
    types="W",
    target="first",
    elementwise=True,
)
def distance_from_initialization(x: Matrix, y: Matrix) -> float:
    """The length of the way from initialisation to here, as the crow flies."""
    exponent = max(x.exponent, y.exponent)
    length = np.linalg.norm(shifted(x.values, -exponent) - shifted(y.values, -exponent))
    return float(np.ldexp(length, exponent))
