"""Comparisons of representations against the same thing written out plainly, or as another library has it."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
from scipy.spatial.distance import cdist, pdist

from pico.analysis.metrics.catalogue import Matrix, compute


def pair(n: int, p: int, q: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two related data sets of n samples, with offsets and features of unequal strength."""
    generator = np.random.default_rng(seed)
    x, y = generator.standard_normal((n, p)), generator.standard_normal((n, q))
    shared = min(p, q) // 2 + 1
    y[:, :shared] += x[:, :shared]
    return x * np.linspace(3, 0.1, p) + 2, y * np.linspace(0.2, 2, q) - 7


def value(name: str, *tensors: object, **parameters: object) -> float:
    found = compute(name, *tensors, **parameters)
    assert found.value is not None, found
    return found.value


def hsic1(k: np.ndarray, other: np.ndarray) -> float:
    """Song et al. 2012, equation 5, as printed."""
    n = len(k)
    k, other = k - np.diag(np.diag(k)), other - np.diag(np.diag(other))
    middle = k.sum() * other.sum() / ((n - 1) * (n - 2))
    return (np.trace(k @ other) + middle - 2 / (n - 2) * (k @ other).sum()) / (n * (n - 3))


SHAPES = [(20, 5, 40), (20, 40, 60), (20, 3, 2), (45, 6, 9)]


@pytest.mark.parametrize("shape", SHAPES)
def test_debiased_cka_is_the_estimator_of_song_et_al(shape: tuple[int, int, int]) -> None:
    x, y = pair(*shape)
    k, other = x @ x.T, y @ y.T
    expected = hsic1(k, other) / math.sqrt(hsic1(k, k) * hsic1(other, other))
    assert value("debiased_cka", x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [4, 7, 8, 20])
def test_minibatch_cka_sums_the_estimator_over_batches(shape: tuple[int, int, int], batch: int) -> None:
    x, y = pair(*shape)
    sums = np.zeros(3)
    for start in range(0, len(x), batch):
        a, b = x[start : start + batch], y[start : start + batch]
        if len(a) >= 4:
            k, other = a @ a.T, b @ b.T
            sums += hsic1(k, other), hsic1(k, k), hsic1(other, other)
    expected = sums[0] / math.sqrt(sums[1] * sums[2])
    assert value("minibatch_cka", x, y, batch=batch) == pytest.approx(expected, rel=1e-8)
    assert value("minibatch_cka", y, x, batch=batch) == pytest.approx(expected, rel=1e-8)
    assert value("minibatch_cka", 5 * x + 1, x, batch=batch) == pytest.approx(1)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_batch_is_debiased_cka(shape: tuple[int, int, int]) -> None:
    x, y = pair(*shape)
    for batch in (len(x), len(x) + 1, 10_000):
        assert value("minibatch_cka", x, y, batch=batch) == pytest.approx(value("debiased_cka", x, y), rel=1e-12)


def test_minibatch_cka_of_independent_data_is_about_0() -> None:
    generator = np.random.default_rng(0)
    found = [
        value("minibatch_cka", generator.standard_normal((256, 300)), generator.standard_normal((256, 300)), batch=32)
        for _ in range(5)
    ]
    assert abs(np.mean(found)) < 0.02


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bandwidth", [0.2, 1.0, 3.0])
def test_rbf_cka_is_cka_of_gaussian_kernels(shape: tuple[int, int, int], bandwidth: float) -> None:
    n = shape[0]
    centring = np.eye(n) - 1 / n
    kernels = []
    for one in (tensors := pair(*shape)):
        width = bandwidth * np.median(pdist(one))
        kernels.append(centring @ np.exp(-cdist(one, one, "sqeuclidean") / (2 * width**2)) @ centring)
    k, other = kernels
    expected = np.trace(k @ other) / math.sqrt(np.trace(k @ k) * np.trace(other @ other))
    assert value("rbf_cka", *tensors, bandwidth=bandwidth) == pytest.approx(expected, rel=1e-9)


def test_a_wide_kernel_is_linear() -> None:
    """exp(-d / w) -> 1 - d / w, and centring leaves the inner products of -d / w."""
    x, y = pair(30, 4, 7)
    assert value("rbf_cka", x, y, bandwidth=1e3) == pytest.approx(value("linear_cka", x, y), rel=1e-4)


def test_rbf_cka_has_no_width_where_most_rows_are_equal() -> None:
    few = np.zeros((12, 3))
    few[0, 0] = 1
    assert compute("rbf_cka", few, pair(12, 3, 3)[0]).status == "zero"


@pytest.mark.parametrize("shape", [(60, 5, 9), (60, 9, 5), (60, 7, 7), (400, 20, 30)])
def test_cca_is_the_cosine_of_scipys_angles_between_subspaces(shape: tuple[int, int, int]) -> None:
    x, y = pair(*shape)
    angles = scipy.linalg.subspace_angles(x - x.mean(axis=0), y - y.mean(axis=0))
    assert value("cca_mean", x, y) == pytest.approx(np.cos(angles).mean(), rel=1e-8)
    assert value("svcca", x, y, variance=1.0) == pytest.approx(np.cos(angles).mean(), rel=1e-8)


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99])
def test_svcca_is_cca_of_the_principal_components(variance: float) -> None:
    reduced = []
    for one in (tensors := pair(60, 12, 15)):
        centred = one - one.mean(axis=0)
        energies, directions = np.linalg.eigh(centred.T @ centred)
        energies, directions = energies[::-1], directions[:, ::-1]
        kept = next(k for k in range(1, len(energies) + 1) if energies[:k].sum() >= variance * energies.sum())
        reduced.append(centred @ directions[:, :kept])
    expected = np.cos(scipy.linalg.subspace_angles(*reduced)).mean()
    assert value("svcca", *tensors, variance=variance) == pytest.approx(expected, rel=1e-8)


def plain_pwcca(x: np.ndarray, y: np.ndarray) -> float:
    """Solves the generalised eigenproblem of the covariances, and a loop over variates and columns."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    cross = x.T @ y
    squares, maps = scipy.linalg.eigh(cross @ np.linalg.solve(y.T @ y, cross.T), x.T @ x)
    total = weighted = 0.0
    for i in np.argsort(squares)[::-1][: min(x.shape[1], y.shape[1])]:
        variate = x @ maps[:, i]
        variate /= np.linalg.norm(variate)
        weight = sum(abs(float(variate @ x[:, j])) for j in range(x.shape[1]))
        total += weight
        weighted += weight * math.sqrt(squares[i])
    return weighted / total


@pytest.mark.parametrize("shape", [(60, 5, 9), (60, 9, 5), (60, 7, 7), (200, 20, 30)])
def test_pwcca_is_what_morcos_et_al_define(shape: tuple[int, int, int]) -> None:
    x, y = pair(*shape)
    assert value("pwcca", x, y) == pytest.approx(plain_pwcca(x, y), rel=1e-7)
    assert value("pwcca", y, x) == pytest.approx(plain_pwcca(y, x), rel=1e-7)
    assert value("pwcca", x + 1000, y) == pytest.approx(value("pwcca", x, y), rel=1e-9)
    assert value("pwcca", x, x) == pytest.approx(1)


def test_pwcca_is_directional() -> None:
    x, y = pair(60, 5, 9)
    assert abs(value("pwcca", x, y) - value("pwcca", y, x)) > 0.01


def test_pwcca_of_shared_directions_does_not_hang_on_rounding() -> None:
    """Eleven correlations of these are 1, so their variates may be turned at will."""
    x, y = pair(14, 12, 12)
    expected = value("pwcca", x, y)
    assert expected < 1
    for offset in (1, 10, 100):
        assert value("pwcca", x + offset, y @ (np.eye(12) + offset)) == pytest.approx(expected, rel=1e-6)


def test_pwcca_weighs_by_the_columns_of_a_product_and_not_of_its_factors() -> None:
    left, y = pair(40, 4, 6)
    right = np.random.default_rng(1).standard_normal((4, 11))
    assert value("pwcca", Matrix.product(left, right), y) == pytest.approx(value("pwcca", left @ right, y), rel=1e-9)
    assert value("pwcca", left @ right, y) != pytest.approx(value("pwcca", left, y), rel=1e-3)


def test_pwcca_says_where_rows_are_too_few_instead_of_failing() -> None:
    x, y = pair(20, 40, 5)
    assert compute("pwcca", x, y).status == compute("pwcca", y, x).status == "n_too_small"


@pytest.mark.parametrize("shape", [(30, 6, 6), (20, 30, 30), (30, 40, 40)])
def test_procrustes_is_scipys(shape: tuple[int, int, int]) -> None:
    """scipy's disparity 1 - nuclear^2 also scales one onto the other; the nuclear norms are the same."""
    x, y = pair(*shape)
    nuclear = math.sqrt(1 - scipy.spatial.procrustes(x, y)[2])
    assert value("procrustes", x, y) == pytest.approx(2 - 2 * nuclear, rel=1e-9)
    rotated = x @ np.linalg.qr(y.T @ y)[0] * 4 + 3
    assert value("procrustes", x, rotated) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_rsa_is_the_correlation_of_scipys_distances(shape: tuple[int, int, int]) -> None:
    from scipy import stats

    x, y = pair(*shape)
    distances = [pdist(one, "sqeuclidean") for one in (x, y)]
    assert value("rsa", x, y) == pytest.approx(stats.pearsonr(*distances).statistic, rel=1e-9)
    assert value("rsa", x, y, correlation="spearman") == pytest.approx(stats.spearmanr(*distances).statistic, rel=1e-9)


def test_ties_share_their_rank() -> None:
    from scipy import stats

    x, y = (np.random.default_rng(seed).integers(0, 3, (15, 2)).astype(float) for seed in (0, 1))
    expected = stats.spearmanr(*(np.round(pdist(one, "sqeuclidean")) for one in (x, y))).statistic
    assert value("rsa", x, y, correlation="spearman") == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("shape", SHAPES)
def test_mutual_knn_counts_shared_neighbours(shape: tuple[int, int, int], k: int) -> None:
    x, y = pair(*shape)
    trees = [scipy.spatial.cKDTree(one) for one in (x, y)]
    near = [tree.query(tree.data, k + 1)[1][:, 1:] for tree in trees]  # the nearest is the row itself
    shared = [len(set(a) & set(b)) / k for a, b in zip(*near, strict=True)]
    assert value("mutual_knn", x, y, k=k) == pytest.approx(np.mean(shared))


def test_linear_cka_written_out() -> None:
    for shape in SHAPES:
        x, y = (one - one.mean(axis=0) for one in pair(*shape))
        n = len(x)
        k = [[float(x[i] @ x[j]) for j in range(n)] for i in range(n)]
        other = [[float(y[i] @ y[j]) for j in range(n)] for i in range(n)]
        products = [
            sum(a[i][j] * b[i][j] for i in range(n) for j in range(n)) for a, b in ((k, other), (k, k), (other, other))
        ]
        assert value("linear_cka", x, y) == pytest.approx(products[0] / math.sqrt(products[1] * products[2]), rel=1e-9)
