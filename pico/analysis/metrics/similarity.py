"""Metrics that compare the distances within two sets of representations; and what independent data would give.

Row i of X and of Y is one sample. Kernels and canonical correlations have modules of their own.
"""

import numpy as np

from pico.analysis.metrics.kernels import require_variation
from pico.analysis.metrics.limits import require
from pico.analysis.metrics.matrix import EPS32, Array, Matrix, triangle
from pico.analysis.metrics.registry import Undefined, compute, metric
from pico.errors import PicoError


@metric(
    definition="2 - 2 |X^T Y|_*, both centred and of Frobenius norm 1; 0 under rotation, at most 2",
    source="Ding et al. 2021, arXiv 2108.01661",
    types="A",
    target="last",
    min_rows=3,
)
def procrustes(x: Matrix, y: Matrix) -> float:
    """Squared distance after the best rotation of one onto the other."""
    require_variation(x, y)
    left, right = _narrow(x.centred), _narrow(y.centred)
    nuclear = float(np.linalg.svd(left.T @ right, compute_uv=False).sum())
    return max(0.0, 2 - 2 * nuclear / (float(np.linalg.norm(left)) * float(np.linalg.norm(right))))


def _narrow(rows: Array) -> Array:
    """(n, min(n, k)): rows with the same inner products in the fewest columns."""
    return rows if rows.shape[1] <= rows.shape[0] else triangle(rows.T).T


@metric(
    definition="correlation of the squared Euclidean distances between rows; `correlation` pearson or spearman",
    source="Kriegeskorte et al. 2008 (Frontiers in Systems Neuroscience 2)",
    types="A",
    target="last",
    min_rows=3,
)
def rsa(x: Matrix, y: Matrix, *, correlation: str = "pearson") -> float:
    """Representational similarity analysis: do the same pairs of samples lie far apart?"""
    require(correlation in ("pearson", "spearman"), "rsa", "correlation", correlation, "pearson or spearman")
    require_variation(x, y)
    upper = np.triu_indices(x.n, k=1)
    distances = [_distances(one)[upper] for one in (x, y)]
    if correlation == "spearman":
        from scipy.stats import rankdata  # here, because scipy.stats takes longer to import than all the rest

        distances = [rankdata(one) for one in distances]
    a, b = (one - one.mean() for one in distances)
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if lengths <= EPS32**2 * float(np.linalg.norm(distances[0])) * float(np.linalg.norm(distances[1])):
        raise Undefined("zero")  # all pairs are equally far apart
    return float(np.clip(np.dot(a, b) / lengths, -1.0, 1.0))


@metric(
    definition="mean share of the k nearest rows that X and Y have in common; chance k / (n - 1)",
    source="Huh et al. 2024, arXiv 2405.07987",
    types="A",
    target="last",
    min_rows=3,
)
def mutual_knn(x: Matrix, y: Matrix, *, k: int = 10) -> float:
    """Do the same samples lie next to each other?"""
    require(k >= 1, "mutual_knn", "k", k, "at least 1")
    require_variation(x, y)
    if k >= x.n - 1:
        raise Undefined("n_too_small")
    near = [_neighbours(one, k) for one in (x, y)]
    return float((near[0] & near[1]).sum()) / (x.n * k)


def _distances(x: Matrix) -> Array:
    """(n, n): squared distances over the largest, to 36 binary places, so that rounding does not part ties."""
    distances = x.squared_distances()
    return np.round(distances * (2.0**36 / distances.max())) / 2.0**36


def _neighbours(x: Matrix, k: int) -> np.ndarray:
    """(n, n) bool: is column j among row i's k nearest? Ties go to the lower index."""
    distances = _distances(x)
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    mask = np.zeros((x.n, x.n), dtype=bool)
    np.put_along_axis(mask, order, True, axis=1)
    return mask


def independence_null(name: str, n: int, p: int, q: int | None = None, *, draws: int = 20, seed: int = 0) -> Array:
    """(draws,): what a metric that compares gives for independent Gaussian data, n x p against n x q (default p).

    The level that is drawn into pictures: linear CKA of unrelated data is far from 0 where n is not far above p.
    Raises PicoError where the metric is not defined for such shapes.
    """
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        x, y = (generator.standard_normal((n, columns)) for columns in (p, q or p))
        found = compute(name, x, y)
        if found.value is None:
            raise PicoError(f"{name} has no null for {n} rows, {p} and {q or p} columns: {found.status}")
        values.append(found.value)
    return np.array(values)
