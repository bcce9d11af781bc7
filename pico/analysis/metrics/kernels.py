"""Centred kernel alignment: do two sets of representations find the same samples alike? Row i of both is one sample.

CKA never forms more than the smaller side asks for: with centred X and Y, <XX^T, YY^T> = |X^T Y|_F^2, and the debiased
estimator needs no more than that and the rows' lengths.
"""

import numpy as np

from pico.analysis.metrics.limits import require
from pico.analysis.metrics.matrix import EPS32, Array, Matrix
from pico.analysis.metrics.registry import Undefined, metric


def require_variation(*matrices: Matrix) -> None:
    """Raises Undefined("zero") where a matrix's rows are all the same."""
    for one in matrices:
        if not one.row_energy.sum() > 0:
            raise Undefined("zero")


def _gram_product(x: Matrix, y: Matrix) -> float:
    """<K, L> = sum_ij K_ij L_ij of the centred Gram matrices, by way of n x n or k x k, whichever is smaller."""
    if x is y:
        return x.gram_energy
    if min(x.centred.shape[1], y.centred.shape[1]) >= x.n:
        return float(np.vdot(x.gram, y.gram))
    return _energy(x.centred.T @ y.centred)


def _energy(array: Array) -> float:
    return float(np.vdot(array, array))


@metric(
    definition="<K, L> / (|K| |L|), K = XX^T, columns centred; independent Gaussian data give about p / (n + p), not 0",
    source="Kornblith et al. 2019, arXiv 1905.00414",
    types="A",
    target="last",
    min_rows=3,
)
def linear_cka(x: Matrix, y: Matrix) -> float:
    """Linear centred kernel alignment: 1 for equal representations up to rotation, scale and offset."""
    require_variation(x, y)
    return min(1.0, _gram_product(x, y) / np.sqrt(x.gram_energy * y.gram_energy))


def _hsic1(gram_product: float, x_energy: Array, y_energy: Array) -> float:
    """n (n - 3) times the unbiased HSIC estimator of Song et al. 2012 (eq. 5), for linear kernels.

    gram_product: <K, L> of the centred rows; x_energy, y_energy: (n,), those rows' squared lengths, the diagonals.
    The estimator does not change when a constant is added to the rows, so X and Y may be centred first. Then K1 = 0,
    and with the diagonal k struck out K~1 = -k, so that 1'K~1 = -sum k, 1'K~L~1 = k.l and tr K~L~ = <K, L> - k.l.
    """
    n, diagonals = len(x_energy), float(np.dot(x_energy, y_energy))
    traces = float(x_energy.sum() * y_energy.sum())
    return gram_product - diagonals * n / (n - 2) + traces / ((n - 1) * (n - 2))


def _debiased(cross: float, own: tuple[float, float], biased: tuple[float, float]) -> float:
    """HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L)); `biased`: HSIC(K, K), HSIC(L, L), which say what is rounding."""
    if any(one <= 1e-12 * energy for one, energy in zip(own, biased, strict=True)):
        raise Undefined("zero")  # nothing varies between distinct rows but rounding
    return float(np.clip(cross / np.sqrt(own[0] * own[1]), -1.0, 1.0))


@metric(
    definition="linear CKA with HSIC_1 of Song et al. in place of HSIC; independent data give about 0, or less",
    source="Song et al. 2012 (JMLR 13); Nguyen et al. 2020, arXiv 2010.15327",
    types="A",
    target="last",
    min_rows=4,
)
def debiased_cka(x: Matrix, y: Matrix) -> float:
    """CKA without the bias that few rows and many features give it."""
    require_variation(x, y)
    own = [_hsic1(one.gram_energy, one.row_energy, one.row_energy) for one in (x, y)]
    cross = _hsic1(_gram_product(x, y), x.row_energy, y.row_energy)
    return _debiased(cross, (own[0], own[1]), (x.gram_energy, y.gram_energy))


@metric(
    definition="sum HSIC_1(K, L) / sqrt(sum HSIC_1(K, K) sum HSIC_1(L, L)) over batches of `batch` successive rows, "
    "the last with the rows left over, if 4 or more; one batch gives debiased_cka",
    source="Nguyen et al. 2020, arXiv 2010.15327",
    types="A",
    target="last",
    min_rows=4,
)
def minibatch_cka(x: Matrix, y: Matrix, *, batch: int = 256) -> float:
    """Debiased CKA from batches of samples: its memory does not grow with the number of rows."""
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
    """(5,): HSIC_1 of (a, b), (a, a), (b, b), and the biased <K, K>, <L, L>; of centred rows, times n (n - 3)."""
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
    """<aa^T, bb^T> by the smaller side."""
    if min(a.shape[1], b.shape[1]) >= len(a):
        return float(np.vdot(a @ a.T, b @ b.T))
    return _energy(a.T @ b)


@metric(
    definition="<K, L> / (|K| |L|), K_ij = exp(-|x_i - x_j|^2 / (2 s^2)), rows and columns centred; s is `bandwidth` "
    "times the median distance between two rows",
    source="Kornblith et al. 2019, arXiv 1905.00414",
    types="A",
    target="last",
    min_rows=3,
)
def rbf_cka(x: Matrix, y: Matrix, *, bandwidth: float = 1.0) -> float:
    """CKA with a Gaussian kernel: near samples count for more. As biased as linear_cka is."""
    require(bandwidth > 0, "rbf_cka", "bandwidth", bandwidth, "more than 0, in median distances")
    require_variation(x, y)
    k, l_ = _centred_rbf(x, bandwidth), _centred_rbf(y, bandwidth)
    lengths = float(np.linalg.norm(k)) * float(np.linalg.norm(l_))
    if lengths <= EPS32**2 * x.n:  # so wide a kernel that all samples are alike
        raise Undefined("zero")
    return float(np.clip(np.vdot(k, l_) / lengths, 0.0, 1.0))


def _centred_rbf(x: Matrix, bandwidth: float) -> Array:
    """(n, n): the Gaussian kernel, with 0 mean rows and columns."""
    distances = x.squared_distances()
    np.fill_diagonal(distances, 0.0)
    median = float(np.median(np.sqrt(distances[np.triu_indices(x.n, k=1)])))
    if median**2 <= EPS32**2 * float(distances.max()):  # most pairs of rows are equal
        raise Undefined("zero")
    kernel = np.exp(distances / (-2 * (bandwidth * median) ** 2))
    kernel -= kernel.mean(axis=0)
    return kernel - kernel.mean(axis=1, keepdims=True)
