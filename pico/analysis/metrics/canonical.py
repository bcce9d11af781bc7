"""Canonical correlations between two sets of representations: how well do linear maps of one predict the other?

All centre their columns, and need more rows than directions: n - 1 directions span every centred vector there is, and
would give correlations of 1 with anything.
"""

import numpy as np

from pico.analysis.metrics.kernels import require_variation
from pico.analysis.metrics.limits import require
from pico.analysis.metrics.matrix import EPS32, Array, Matrix
from pico.analysis.metrics.registry import Undefined, metric

TIE = 1e-9
"""Canonical correlations nearer to each other are taken as equal."""


@metric(
    definition="mean canonical correlation: mean singular value of Qx^T Qy, orthonormal bases of the centred columns, "
    "cut where singular values are under s_1 max(n, p) eps of float32",
    source="Hotelling 1936; Raghu et al. 2017, arXiv 1706.05806",
    types="A",
    target="last",
    min_rows=3,
)
def cca_mean(x: Matrix, y: Matrix) -> float:
    """Mean canonical correlation; n_too_small where either spans all n - 1 directions, which alone would give 1."""
    return float(np.mean(_correlations(_basis(x), _basis(y))))


@metric(
    definition="mean canonical correlation of the principal components that hold `variance` of the variance",
    source="Raghu et al. 2017, arXiv 1706.05806",
    types="A",
    target="last",
    min_rows=3,
)
def svcca(x: Matrix, y: Matrix, *, variance: float = 0.99) -> float:
    """CCA after PCA, which keeps weak directions from counting as much as strong ones."""
    require(0 < variance <= 1, "svcca", "variance", variance, "over 0 and at most 1")
    return float(np.mean(_correlations(_basis(x, variance), _basis(y, variance))))


@metric(
    definition="sum a_i r_i / sum a_i, r_i the canonical correlations, a_i = sum_j |<h_i, x_j>| over the centred "
    "columns x_j of X, h_i the canonical variates of X (where r is tied, X's principal axes); directional",
    source="Morcos et al. 2018, arXiv 1806.05759",
    types="A",
    target="last",
    min_rows=3,
)
def pwcca(x: Matrix, y: Matrix) -> float:
    """Projection-weighted CCA: directions count by how much of X they account for."""
    basis = _basis(x)
    rotation, correlations, _ = np.linalg.svd(basis.T @ _basis(y), full_matrices=False)
    variates = basis @ rotation
    # The weights depend on the basis of X's columns, so those of the entries are needed, not of `features`.
    columns = x.unit_values()
    loadings = variates.T @ (columns - columns.mean(axis=0))
    # Equal correlations, as where X and Y share several directions, leave their variates free to turn, and the weights
    # with them: take the principal axes of X among them, so that rounding does not choose.
    for tied in np.split(np.arange(len(loadings)), np.flatnonzero(-np.diff(correlations) > TIE) + 1):
        if len(tied) > 1:
            _, lengths, axes = np.linalg.svd(loadings[tied], full_matrices=False)
            loadings[tied] = lengths[:, None] * axes
    weights = np.abs(loadings).sum(axis=1)
    return float(np.dot(weights, np.minimum(correlations, 1.0)) / weights.sum())


def _basis(x: Matrix, variance: float = 1.0) -> Array:
    """(n, r): an orthonormal basis of the centred columns' span, or of its strongest directions."""
    require_variation(x)
    # not by the Gram matrix: the basis that it gives is less orthogonal
    left, spectrum, _ = np.linalg.svd(x.centred, full_matrices=False)
    rank = int((spectrum > spectrum[0] * max(x.n, x.p) * EPS32).sum())
    if variance < 1:
        share = np.cumsum(spectrum**2) / np.sum(spectrum**2)
        rank = min(rank, int(np.searchsorted(share, variance)) + 1)
    if rank >= x.n - 1:
        raise Undefined("n_too_small")
    return left[:, :rank]


def _correlations(x: Array, y: Array) -> Array:
    return np.minimum(np.linalg.svd(x.T @ y, compute_uv=False), 1.0)
