"""Power laws, the Marchenko-Pastur edge, and the spectra of features: known laws, and other libraries' fits."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from pico.analysis.metrics.catalogue import Matrix, compute
from pico.analysis.metrics.powerlaw import fit_power_law
from pico.analysis.metrics.spectra import marchenko_pastur_edge

GOLDEN = Path(__file__).parents[1] / "golden"
P = load_file(GOLDEN / "metrics.safetensors")["P"].astype(np.float64)
EXPECTED = json.loads((GOLDEN / "metrics.json").read_text())["single"]["P"]


def gaussian(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def with_eigenvalues(values: np.ndarray, rows: int | None = None, seed: int = 0) -> np.ndarray:
    """(rows, len(values)): a matrix with these squared singular values, whose columns have mean 0."""
    rows = rows or 2 * len(values)
    left = gaussian(seed, rows, len(values))
    left = np.linalg.qr(left - left.mean(axis=0))[0]
    right = np.linalg.qr(gaussian(seed + 1, len(values), len(values)))[0]
    return left * np.sqrt(values) @ right


def value(name: str, *tensors: object, **parameters: object) -> float:
    found = compute(name, *tensors, **parameters)
    assert found.value is not None, found
    return found.value


# The power law of the tail --------------------------------------------------------------------------------------------


def test_the_exponent_equals_an_independent_package() -> None:
    found = fit_power_law(np.log(P), 0.0)
    assert found is not None
    assert found.alpha == pytest.approx(EXPECTED["powerlaw_alpha_xmin_1"], rel=1e-9)
    assert found.k == len(P)


def test_the_metric_fits_squared_singular_values() -> None:
    some = P[:: len(P) // 150]
    matrix = with_eigenvalues(some)
    expected = 1 + len(some) / sum(math.log(one) for one in some)
    assert value("powerlaw_alpha", matrix, xmin=1.0) == pytest.approx(expected, rel=1e-6)
    assert value("powerlaw_k", matrix, xmin=1.0) == len(some)
    tail = [one for one in some if one >= 2]
    assert value("powerlaw_alpha", matrix, xmin=2.0) == pytest.approx(
        1 + len(tail) / sum(math.log(one / 2) for one in tail), rel=1e-6
    )
    assert value("powerlaw_k", matrix, xmin=2.0) == len(tail)


def plain_fit(values: np.ndarray) -> tuple[float, float, int]:
    """(alpha, D, k) of the start whose Pareto distribution is nearest, by scipy's own test and likelihood fit."""
    from scipy import stats

    found = []
    for xmin in sorted(values)[:-1]:
        tail = values[values >= xmin]
        shape, _, _ = stats.pareto.fit(tail, floc=0, fscale=xmin)
        found.append((stats.kstest(tail, stats.pareto(shape, scale=xmin).cdf).statistic, 1 + shape, len(tail)))
    distance, alpha, k = min(found)
    return alpha, distance, k


@pytest.mark.parametrize("seed", range(3))
def test_the_start_of_the_tail_is_scipys_least_distance(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = np.concatenate([generator.uniform(0.1, 1, 30), (1 - generator.random(40)) ** (-1 / 1.5)])
    expected = plain_fit(values)
    matrix = with_eigenvalues(values)
    found = [value(f"powerlaw_{part}", matrix) for part in ("alpha", "d", "k")]
    assert found == pytest.approx(expected, rel=1e-6)
    lengths = [value(f"powerlaw_{part}", 1e-3 * matrix) for part in ("alpha", "d", "k")]
    assert lengths == pytest.approx(found, rel=1e-6)  # a power law has no scale


@pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0])
def test_the_exponent_that_was_drawn_is_found(alpha: float) -> None:
    values = (1 - np.random.default_rng(1).random(3000)) ** (-1 / (alpha - 1))
    found = fit_power_law(np.log(values))
    assert found is not None
    assert found.alpha == pytest.approx(alpha, rel=0.1)
    assert found.distance < 0.05


def test_a_body_under_the_tail_is_left_out() -> None:
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.uniform(0, 1, 500), (1 - generator.random(500)) ** (-1 / 1.5)])
    found = fit_power_law(np.log(values))
    assert found is not None
    assert math.exp(found.log_xmin) == pytest.approx(1, abs=0.3)
    assert found.alpha == pytest.approx(2.5, rel=0.1)


def test_spectra_without_a_tail() -> None:
    orthogonal = np.linalg.qr(gaussian(0, 8, 8))[0]
    assert compute("powerlaw_alpha", orthogonal).status == "zero"
    assert compute("powerlaw_alpha", orthogonal.astype(np.float32)).status == "zero"
    assert compute("powerlaw_alpha", gaussian(0, 9, 1)).status == "n_too_small"
    assert compute("powerlaw_alpha", gaussian(0, 9, 5), xmin=1e6).status == "n_too_small"


def test_a_deficient_spectrum_is_fitted_over_its_rank() -> None:
    left, right = gaussian(0, 40, 8), gaussian(1, 8, 30)
    product, dense = compute("powerlaw_alpha", Matrix.product(left, right)), compute("powerlaw_alpha", left @ right)
    assert dense.value == pytest.approx(product.value, rel=1e-6)
    assert (product.status, dense.status) == ("ok", "rank_deficient")
    assert product.rank == dense.rank == 8
    assert value("powerlaw_k", left @ right) <= 8


def test_extreme_scales_keep_a_fixed_start() -> None:
    """ln l of entries of 1e200 is taken although l itself overflows."""
    matrix = gaussian(0, 40, 20)
    assert value("powerlaw_k", 1e200 * matrix, xmin=1e300) == 20
    assert compute("powerlaw_alpha", 1e-200 * matrix, xmin=1e-300).status == "n_too_small"


# The Marchenko-Pastur edge --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 1200), (400, 400), (1000, 100)])
def test_independent_entries_stay_under_the_edge(shape: tuple[int, int]) -> None:
    noise = gaussian(0, *shape)
    energies = np.linalg.svd(noise, compute_uv=False) ** 2
    edge = marchenko_pastur_edge(*shape) * energies.sum()
    assert energies[0] == pytest.approx(edge, rel=0.05)
    assert value("mp_excess", noise) < 0.02
    assert value("mp_excess", 0.02 * noise) == pytest.approx(value("mp_excess", noise))


def test_directions_over_the_edge_count_by_their_energy() -> None:
    n, p = 200, 300
    noise = gaussian(0, n, p)
    u, v = np.linalg.qr(gaussian(1, n, 3))[0], np.linalg.qr(gaussian(2, p, 3))[0]
    spiked = noise + u * [200.0, 150.0, 100.0] @ v.T
    energies = np.linalg.svd(spiked, compute_uv=False) ** 2
    variance = np.mean(spiked**2)
    over = energies[energies > variance * (math.sqrt(n) + math.sqrt(p)) ** 2]
    assert len(over) == 3
    assert value("mp_excess", spiked) == pytest.approx(over.sum() / energies.sum(), rel=1e-9)
    assert value("mp_excess", np.ones((30, 40))) == pytest.approx(1)
    assert value("mp_excess", np.eye(30)) == 0
    assert value("mp_excess", spiked.T) == pytest.approx(value("mp_excess", spiked))


# Features -------------------------------------------------------------------------------------------------------------


def test_rankme_is_the_papers() -> None:
    for shape in ((50, 20), (20, 50)):
        features = gaussian(0, *shape) * np.linspace(0, 2, shape[1]) + 1
        spectrum = scipy.linalg.svdvals(features)
        share = spectrum / np.abs(spectrum).sum() + 1e-7
        expected = math.exp(-sum(float(one) * math.log(one) for one in share))
        assert value("rankme", features) == pytest.approx(expected, rel=1e-6)
        assert value("rankme", features, eps=0) == pytest.approx(value("effective_rank", features), rel=1e-12)
    assert value("rankme", np.eye(9)) == pytest.approx(9, rel=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("rows", [400, 80])
def test_alpha_req_finds_the_decay(alpha: float, rows: int) -> None:
    decay = np.arange(1, 61) ** -alpha
    features = with_eigenvalues(decay, rows=rows) + 5  # the offset is centred away
    assert value("alpha_req", features) == pytest.approx(alpha, rel=1e-6)
    assert value("alpha_req", features, first=1, last=10) == pytest.approx(alpha, rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), first=st.integers(1, 5), last=st.integers(8, 40))
def test_alpha_req_is_weighted_least_squares(seed: int, first: int, last: int) -> None:
    features = gaussian(seed, 60, 30) * np.linspace(3, 0.2, 30)
    eigenvalues = np.linalg.eigvalsh(np.cov(features.T))[::-1]
    ranks = range(first, min(last, 30) + 1)
    points = [(math.log(i), math.log(eigenvalues[i - 1]), 1 / i) for i in ranks]
    total = sum(w for _, _, w in points)
    mean_x, mean_y = (sum(one[2] * one[axis] for one in points) / total for axis in (0, 1))
    slope = sum(w * (a - mean_x) * (b - mean_y) for a, b, w in points) / sum(
        w * (a - mean_x) ** 2 for a, _, w in points
    )
    assert value("alpha_req", features, first=first, last=last) == pytest.approx(-slope, rel=1e-6)


def test_alpha_req_of_too_few_directions() -> None:
    assert compute("alpha_req", gaussian(0, 30, 4)).status == "n_too_small"
    assert compute("alpha_req", np.outer(np.arange(12.0), np.ones(9))).status == "n_too_small"
    assert compute("alpha_req", np.ones((12, 9))).status == "zero"


# Proportional effective rank ------------------------------------------------------------------------------------------


def test_per_over_the_structural_rank_and_over_the_smaller_side() -> None:
    left, right = np.linalg.qr(gaussian(0, 16, 4))[0], np.linalg.qr(gaussian(1, 24, 4))[0].T
    product = Matrix.product(left, right)
    assert value("per", product) == pytest.approx(1)
    assert value("per_min_dim", product) == pytest.approx(4 / 16)
    dense = gaussian(2, 10, 30)
    assert value("per", dense) == value("per_min_dim", dense) == pytest.approx(value("effective_rank", dense) / 10)
