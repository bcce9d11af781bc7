"""Metrics that compare two sets of representations; row i of both is one sample. All centre their columns.

Centred kernel alignment never forms more than the smaller side asks for: with centred X and Y, <XX^T, YY^T> =
|X^T Y|_F^2, and the debiased estimator needs no more than that and the rows' lengths. Canonical correlations need more
rows than directions: n - 1 directions span every centred vector there is, and give correlations of 1 with anything.
"""

from functools import partial

import numpy as np

from pico.analysis.metrics.matrix import EPS32, Array, Matrix, energy, narrow
from pico.analysis.metrics.registry import Undefined, compute, metric, require, require_variation
from pico.errors import PicoError

TIE = 1e-9
"""Canonical correlations nearer to each other are taken as equal."""

comparison = partial(metric, types="A", target="last", min_rows=3, gram=True)


def _gram_product(x: Matrix, y: Matrix) -> float:
    """Computes <K, L> = sum_ij K_ij L_ij of the centred Gram matrices, by n x n or k x k, whichever is smaller."""
    if x is y:
        return x.gram_energy
    if min(x.centred.shape[1], y.centred.shape[1]) >= x.n:
        return float(np.vdot(x.gram, y.gram))
    return energy(x.centred.T @ y.centred)


@comparison(
    definition="<K, L> / (|K| |L|), K = XX^T, columns centred; independent Gaussian data give about p / (n + p), not 0",
    source="Kornblith et al. 2019, arXiv 1905.00414",
)
def linear_cka(x: Matrix, y: Matrix) -> float:
    """Computes linear centred kernel alignment: 1 for representations equal up to rotation, scale and offset."""
    require_variation(x, y)
    return min(1.0, _gram_product(x, y) / np.sqrt(x.gram_energy * y.gram_energy))


def _hsic1(gram_product: float, x_energy: Array, y_energy: Array) -> float:
    """Computes n (n - 3) times the unbiased HSIC estimator of Song et al. 2012 (eq. 5), for linear kernels.

    gram_product: <K, L> of the centred rows; x_energy, y_energy: (n,), those rows' squared lengths, the diagonals.
    The estimator does not change when a constant is added to the rows, so X and Y may be centred first. Then K1 = 0,
    and with the diagonal k struck out K~1 = -k, so that 1'K~1 = -sum k, 1'K~L~1 = k.l and tr K~L~ = <K, L> - k.l.
    """
    n, diagonals = len(x_energy), float(np.dot(x_energy, y_energy))
    traces = float(x_energy.sum() * y_energy.sum())
    return gram_product - diagonals * n / (n - 2) + traces / ((n - 1) * (n - 2))


def _debiased(cross: float, own: tuple[float, float], biased: tuple[float, float]) -> float:
    """Computes HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L)); `biased`, HSIC(K, K), HSIC(L, L), shows rounding."""
    if any(one <= 1e-12 * energy for one, energy in zip(own, biased, strict=True)):
        raise Undefined("zero")  # nothing varies between distinct rows but rounding
    return float(np.clip(cross / np.sqrt(own[0] * own[1]), -1.0, 1.0))


@comparison(
    definition="linear CKA with HSIC_1 of Song et al. in place of HSIC; independent data give about 0, or less",
    source="Song et al. 2012 (JMLR 13); Nguyen et al. 2020, arXiv 2010.15327",
    min_rows=4,
    default=True,
)
def debiased_cka(x: Matrix, y: Matrix) -> float:
    """Computes CKA without the bias that few rows and many features give it."""
    require_variation(x, y)
    own = [_hsic1(one.gram_energy, one.row_energy, one.row_energy) for one in (x, y)]
    cross = _hsic1(_gram_product(x, y), x.row_energy, y.row_energy)
    return _debiased(cross, (own[0], own[1]), (x.gram_energy, y.gram_energy))


@comparison(
    definition="sum HSIC_1(K, L) / sqrt(sum HSIC_1(K, K) sum HSIC_1(L, L)) over batches of `batch` successive rows, "
    "the last with the rows left over, if 4 or more; one batch gives debiased_cka",
    source="Nguyen et al. 2020, arXiv 2010.15327",
    min_rows=4,
)
def minibatch_cka(x: Matrix, y: Matrix, *, batch: int = 256) -> float:
    """Computes debiased CKA from batches of samples: its memory does not grow with the number of rows."""
    require(batch >= 4, "minibatch_cka", "batch", batch, "at least 4, because HSIC_1 is not defined for fewer rows")
    require_variation(x, y)
    sums = np.zeros(5)
    for start in range(0, x.n, batch):
        # centred as a whole already, for precision; each batch has a mean of its own besides
        a, b = (one.centred[start : start + batch] for one in (x, y))
        n = len(a)
        if n >= 4:
            sums += _batch_terms(a - a.mean(axis=0), b - b.mean(axis=0)) / (n * (n - 3))
    cross, x_own, y_own, x_biased, y_biased = (float(one) for one in sums)
    return _debiased(cross, (x_own, y_own), (x_biased, y_biased))


def _batch_terms(a: Array, b: Array) -> Array:
    """Computes HSIC_1 of (a, b), (a, a), (b, b), and the biased <K, K>, <L, L>, (5,); centred, times n (n - 3)."""
    x_energy, y_energy = (np.einsum("ij,ij->i", one, one) for one in (a, b))
    cross, x_own, y_own = _rows_product(a, b), _rows_product(a, a), _rows_product(b, b)
    return np.array([
        _hsic1(cross, x_energy, y_energy),
        _hsic1(x_own, x_energy, x_energy),
        _hsic1(y_own, y_energy, y_energy),
        x_own,
        y_own,
    ])  # fmt: skip


def _rows_product(a: Array, b: Array) -> float:
    """Computes <aa^T, bb^T> by the smaller side."""
    if min(a.shape[1], b.shape[1]) >= len(a):
        return float(np.vdot(a @ a.T, b @ b.T))
    return energy(a.T @ b)


@comparison(
    definition="<K, L> / (|K| |L|), K_ij = exp(-|x_i - x_j|^2 / (2 s^2)), rows and columns centred; s is `bandwidth` "
    "times the median distance between two rows",
    source="Kornblith et al. 2019, arXiv 1905.00414",
)
def rbf_cka(x: Matrix, y: Matrix, *, bandwidth: float = 1.0) -> float:
    """Computes CKA with a Gaussian kernel: near samples count for more. As biased as linear_cka is."""
    require(bandwidth > 0, "rbf_cka", "bandwidth", bandwidth, "more than 0, in median distances")
    require_variation(x, y)
    k, l_ = _centred_rbf(x, bandwidth), _centred_rbf(y, bandwidth)
    lengths = float(np.linalg.norm(k)) * float(np.linalg.norm(l_))
    if lengths <= EPS32**2 * x.n:  # so wide a kernel that all samples are alike
        raise Undefined("zero")
    return float(np.clip(np.vdot(k, l_) / lengths, 0.0, 1.0))


def _centred_rbf(x: Matrix, bandwidth: float) -> Array:
    """Computes the Gaussian kernel, (n, n), with 0 mean rows and columns."""
    distances = x.squared_distances()
    np.fill_diagonal(distances, 0.0)
    median = float(np.median(np.sqrt(distances[np.triu_indices(x.n, k=1)])))
    if median**2 <= EPS32**2 * float(distances.max()):  # most pairs of rows are equal
        raise Undefined("zero")
    kernel = np.exp(distances / (-2 * (bandwidth * median) ** 2))
    kernel -= kernel.mean(axis=0)
    return kernel - kernel.mean(axis=1, keepdims=True)


@comparison(
    definition="mean canonical correlation: mean singular value of Qx^T Qy, orthonormal bases of the centred columns, "
    "cut where singular values are under s_1 max(n, p) eps of float32",
    source="Hotelling 1936; Raghu et al. 2017, arXiv 1706.05806",
)
def cca_mean(x: Matrix, y: Matrix) -> float:
    """Computes the mean canonical correlation; n_too_small where either spans all n - 1 directions: 1 by itself."""
    return float(np.mean(_correlations(_basis(x), _basis(y))))


@comparison(
    definition="mean canonical correlation of the principal components that hold `variance` of the variance",
    source="Raghu et al. 2017, arXiv 1706.05806",
)
def svcca(x: Matrix, y: Matrix, *, variance: float = 0.99) -> float:
    """Computes CCA after PCA, which keeps weak directions from counting as much as strong ones."""
    require(0 < variance <= 1, "svcca", "variance", variance, "over 0 and at most 1")
    return float(np.mean(_correlations(_basis(x, variance), _basis(y, variance))))


@comparison(
    definition="sum a_i r_i / sum a_i, r_i the canonical correlations, a_i = sum_j |<h_i, x_j>| over the centred "
    "columns x_j of X, h_i the canonical variates of X (where r is tied, X's principal axes); directional",
    source="Morcos et al. 2018, arXiv 1806.05759",
    gram=False,
)
def pwcca(x: Matrix, y: Matrix) -> float:
    """Computes projection-weighted CCA: directions count by how much of X they account for."""
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
    """Returns an orthonormal basis of the centred columns' span, or of its strongest directions: (n, r)."""
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


@comparison(
    definition="2 - 2 |X^T Y|_*, both centred and of Frobenius norm 1; 0 under rotation, at most 2",
    source="Ding et al. 2021, arXiv 2108.01661",
)
def procrustes(x: Matrix, y: Matrix) -> float:
    """Computes the squared distance after the best rotation of one onto the other."""
    require_variation(x, y)
    left, right = narrow(x.centred), narrow(y.centred)
    nuclear = float(np.linalg.svd(left.T @ right, compute_uv=False).sum())
    return max(0.0, 2 - 2 * nuclear / (float(np.linalg.norm(left)) * float(np.linalg.norm(right))))


@comparison(
    definition="correlation of the squared Euclidean distances between rows; `correlation` pearson or spearman",
    source="Kriegeskorte et al. 2008 (Frontiers in Systems Neuroscience 2)",
)
def rsa(x: Matrix, y: Matrix, *, correlation: str = "pearson") -> float:
    """Computes representational similarity: whether the same pairs of samples lie far apart."""
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


@comparison(
    definition="mean share of the k nearest rows that X and Y have in common; chance k / (n - 1)",
    source="Huh et al. 2024, arXiv 2405.07987",
)
def mutual_knn(x: Matrix, y: Matrix, *, k: int = 10) -> float:
    """Computes the share of nearest rows in common: whether the same samples lie next to each other."""
    require(k >= 1, "mutual_knn", "k", k, "at least 1")
    require_variation(x, y)
    if k >= x.n - 1:
        raise Undefined("n_too_small")
    near = [_neighbours(one, k) for one in (x, y)]
    return float((near[0] & near[1]).sum()) / (x.n * k)


def _distances(x: Matrix) -> Array:
    """Computes squared distances over the largest, (n, n), to 36 binary places, so that rounding parts no ties."""
    distances = x.squared_distances()
    return np.round(distances * (2.0**36 / distances.max())) / 2.0**36


def _neighbours(x: Matrix, k: int) -> np.ndarray:
    """Tells whether column j is among row i's k nearest, (n, n) bool. Ties go to the lower index."""
    distances = _distances(x)
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    mask = np.zeros((x.n, x.n), dtype=bool)
    np.put_along_axis(mask, order, True, axis=1)
    return mask


def independence_null(name: str, n: int, p: int, q: int | None = None, *, draws: int = 20, seed: int = 0) -> Array:
    """Samples, `draws` times, what a metric gives for independent Gaussian data, n x p and n x q (default p).

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
