"""Metrics that compare two sets of representations of the same samples. Row i of X and of Y is one sample.

All centre their columns. CKA never forms more than the smaller side asks for: with centred X and Y,
<XX^T, YY^T> = |X^T Y|_F^2, and the debiased estimator needs no more than that and the rows' lengths.
"""

import numpy as np

from pico.analysis.matrix import EPS32, Array, Matrix, triangle
from pico.analysis.registry import METRICS, Undefined, metric


def _gram_product(x: Matrix, y: Matrix) -> float:
    """<K, L> = sum_ij K_ij L_ij of the centred Gram matrices, by way of n x n or k x k, whichever is smaller."""
    if x is y:
        return x.gram_energy
    if min(x.centred.shape[1], y.centred.shape[1]) >= x.n:
        return float(np.vdot(x.gram, y.gram))
    cross = x.centred.T @ y.centred
    return float(np.vdot(cross, cross))


def _require_variation(*matrices: Matrix) -> None:
    for one in matrices:
        if not one.row_energy.sum() > 0:
            raise Undefined("zero")


@metric(
    definition="<K, L> / (|K| |L|), K = XX^T, columns centred; independent Gaussian data give about p / (n + p), not 0",
    source="Kornblith et al. 2019, arXiv 1905.00414",
    types="A",
    target="last",
    min_rows=3,
)
def linear_cka(x: Matrix, y: Matrix) -> float:
    """Linear centred kernel alignment: 1 for equal representations up to rotation, scale and offset."""
    _require_variation(x, y)
    return min(1.0, _gram_product(x, y) / np.sqrt(x.gram_energy * y.gram_energy))


def _hsic1(gram_product: float, x: Matrix, y: Matrix) -> float:
    """n (n - 3) times the unbiased HSIC estimator of Song et al. 2012 (eq. 5), for linear kernels.

    The estimator does not change when a constant is added to the rows, so X and Y may be centred first. Then K1 = 0,
    and with the diagonal k struck out K~1 = -k, so that 1'K~1 = -sum k, 1'K~L~1 = k.l and tr K~L~ = <K, L> - k.l.
    """
    n, diagonals = x.n, float(np.dot(x.row_energy, y.row_energy))
    traces = float(x.row_energy.sum() * y.row_energy.sum())
    return gram_product - diagonals * n / (n - 2) + traces / ((n - 1) * (n - 2))


@metric(
    definition="linear CKA with HSIC_1 of Song et al. in place of HSIC; independent data give about 0, or less",
    source="Song et al. 2012; Nguyen et al. 2020, arXiv 2010.15327",
    types="A",
    target="last",
    min_rows=4,
)
def debiased_cka(x: Matrix, y: Matrix) -> float:
    """CKA without the bias that few rows and many features give it."""
    _require_variation(x, y)
    own = []
    for one in (x, y):
        energy = _hsic1(one.gram_energy, one, one)
        if energy <= 1e-12 * one.gram_energy:  # nothing varies between distinct rows but rounding
            raise Undefined("zero")
        own.append(energy)
    return float(np.clip(_hsic1(_gram_product(x, y), x, y) / np.sqrt(own[0] * own[1]), -1.0, 1.0))


@metric(
    definition="mean canonical correlation, bases cut where singular values are rounding noise",
    source="Raghu et al. 2017, arXiv 1706.05806",
    types="A",
    target="last",
    min_rows=3,
)
def cca_mean(x: Matrix, y: Matrix) -> float:
    """Mean canonical correlation; n_too_small where either spans all n - 1 directions, which alone would give 1."""
    return float(np.mean(_canonical_correlations(_basis(x), _basis(y))))


@metric(
    definition="mean canonical correlation of the principal components that hold `variance` of the variance",
    source="Raghu et al. 2017, arXiv 1706.05806",
    types="A",
    target="last",
    min_rows=3,
)
def svcca(x: Matrix, y: Matrix, *, variance: float = 0.99) -> float:
    """CCA after PCA, which keeps weak directions from counting as much as strong ones."""
    return float(np.mean(_canonical_correlations(_basis(x, variance), _basis(y, variance))))


def _basis(x: Matrix, variance: float = 1.0) -> Array:
    """(n, r): an orthonormal basis of the centred columns' span, or of its strongest directions."""
    _require_variation(x)
    # not by the Gram matrix: the basis that it gives is less orthogonal
    left, spectrum, _ = np.linalg.svd(x.centred, full_matrices=False)
    rank = int((spectrum > spectrum[0] * max(x.n, x.p) * EPS32).sum())
    if variance < 1:
        share = np.cumsum(spectrum**2) / np.sum(spectrum**2)
        rank = min(rank, int(np.searchsorted(share, variance)) + 1)
    if rank >= x.n - 1:
        raise Undefined("n_too_small")
    return left[:, :rank]


def _canonical_correlations(x: Array, y: Array) -> Array:
    return np.minimum(np.linalg.svd(x.T @ y, compute_uv=False), 1.0)


@metric(
    definition="2 - 2 |X^T Y|_*, both centred and of Frobenius norm 1; 0 under rotation, at most 2",
    source="Ding et al. 2021, arXiv 2108.01661",
    types="A",
    target="last",
    min_rows=3,
)
def procrustes(x: Matrix, y: Matrix) -> float:
    """Squared distance after the best rotation of one onto the other."""
    _require_variation(x, y)
    left, right = _narrow(x.centred), _narrow(y.centred)
    nuclear = float(np.linalg.svd(left.T @ right, compute_uv=False).sum())
    return max(0.0, 2 - 2 * nuclear / (float(np.linalg.norm(left)) * float(np.linalg.norm(right))))


def _narrow(rows: Array) -> Array:
    """(n, min(n, k)): rows with the same inner products in the fewest columns."""
    return rows if rows.shape[1] <= rows.shape[0] else triangle(rows.T).T


@metric(
    definition="correlation of the squared Euclidean distances between rows; `correlation` pearson or spearman",
    source="Kriegeskorte et al. 2008",
    types="A",
    target="last",
    min_rows=3,
)
def rsa(x: Matrix, y: Matrix, *, correlation: str = "pearson") -> float:
    """Representational similarity analysis: do the same pairs of samples lie far apart?"""
    _require_variation(x, y)
    if correlation not in ("pearson", "spearman"):
        raise ValueError(f"correlation = {correlation!r}: pearson or spearman")
    upper = np.triu_indices(x.n, k=1)
    distances = [_squared_distances(one)[upper] for one in (x, y)]
    if correlation == "spearman":
        distances = [_ranks(one) for one in distances]
    a, b = (one - one.mean() for one in distances)
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if lengths <= EPS32**2 * float(np.linalg.norm(distances[0])) * float(np.linalg.norm(distances[1])):
        raise Undefined("zero")  # all pairs are equally far apart
    return float(np.clip(np.dot(a, b) / lengths, -1.0, 1.0))


def _squared_distances(x: Matrix) -> Array:
    return np.maximum(x.row_energy[:, None] + x.row_energy[None, :] - 2 * x.gram, 0.0)


def _ranks(values: Array) -> Array:
    """Ranks from 1, ties sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


@metric(
    definition="mean share of the k nearest rows that X and Y have in common; chance k / (n - 1)",
    source="Huh et al. 2024, arXiv 2405.07987",
    types="A",
    target="last",
    min_rows=3,
)
def mutual_knn(x: Matrix, y: Matrix, *, k: int = 10) -> float:
    """Do the same samples lie next to each other?"""
    _require_variation(x, y)
    if k >= x.n - 1:
        raise Undefined("n_too_small")
    near = [_neighbours(one, k) for one in (x, y)]
    return float((near[0] & near[1]).sum()) / (x.n * k)


def _neighbours(x: Matrix, k: int) -> np.ndarray:
    """(n, n) bool: is column j among row i's k nearest? Ties go to the lower index."""
    distances = _squared_distances(x)
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    mask = np.zeros((x.n, x.n), dtype=bool)
    np.put_along_axis(mask, order, True, axis=1)
    return mask


def independence_null(name: str, n: int, p: int, q: int | None = None, *, draws: int = 20, seed: int = 0) -> Array:
    """(draws,): what a metric that compares gives for independent Gaussian data, n x p against n x q (default p).

    The level that is drawn into pictures: linear CKA of unrelated data is far from 0 where n is not far above p.
    """
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        x, y = (Matrix.of(generator.standard_normal((n, columns))) for columns in (p, q or p))
        values.append(METRICS[name].function(x, y))
    return np.array(values)
