"""Metrics of tensors have known values, and those of independent packages."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from metric_cases import (
    LENGTHS,
    gaussian,
    value,
)
from safetensors.numpy import load_file

from pico.analysis.metrics.catalogue import Measurement, compute, independence_null
from pico.errors import PicoError

GOLDEN = Path(__file__).parents[1] / "golden"
TENSORS = load_file(GOLDEN / "metrics.safetensors")
EXPECTED = json.loads((GOLDEN / "metrics.json").read_text())


# Independent packages -------------------------------------------------------------------------------------------------

PAIRS = [
    ("linear_cka", "X", "Y", {}, EXPECTED["pairs"]["X,Y"]["linear_cka"]),
    ("debiased_cka", "X", "Y", {}, EXPECTED["pairs"]["X,Y"]["debiased_cka"]),
    ("procrustes", "X", "Y", {}, EXPECTED["pairs"]["X,Y"]["procrustes_squared_distance"]),
    ("rsa", "X", "Y", {}, EXPECTED["pairs"]["X,Y"]["rsa_sqeuclidean_pearson"]),
    ("rsa", "X", "Y", {"correlation": "spearman"}, EXPECTED["pairs"]["X,Y"]["rsa_sqeuclidean_spearman"]),
    ("linear_cka", "I", "J", {}, EXPECTED["pairs"]["I,J"]["linear_cka"]),
    ("debiased_cka", "I", "J", {}, EXPECTED["pairs"]["I,J"]["debiased_cka"]),
]


@pytest.mark.parametrize(("name", "x", "y", "parameters", "expected"), PAIRS)
def test_pairs_equal_independent_packages(name: str, x: str, y: str, parameters: dict, expected: float) -> None:
    assert value(name, TENSORS[x], TENSORS[y], **parameters) == pytest.approx(expected, rel=1e-6)


def test_cca_equals_an_independent_package() -> None:
    expected = EXPECTED["pairs"]["X[:,:25],Y"]["cca_mean"]
    assert value("cca_mean", TENSORS["X"][:, :25], TENSORS["Y"]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("name", "expected"), EXPECTED["single"]["W"].items())
def test_single_tensors_equal_independent_packages(name: str, expected: float) -> None:
    assert value(name, TENSORS["W"]) == pytest.approx(expected, rel=1e-6)


def test_a_rank_deficient_matrix_equals_independent_packages() -> None:
    expected = EXPECTED["single"]["R (rank 8)"]
    for name in ("effective_rank", "stable_rank"):
        assert value(name, TENSORS["R"]) == pytest.approx(expected[name], rel=1e-6)
    found = compute("condition_number", TENSORS["R"])
    assert found.value == pytest.approx(expected["condition_number_over_numerical_rank"], rel=1e-6)
    assert (found.rank, found.status) == (expected["numerical_rank"], "rank_deficient")


# Known values ---------------------------------------------------------------------------------------------------------


def test_known_spectra() -> None:
    assert value("per", np.eye(7)) == pytest.approx(1)
    assert value("per", gaussian(0, 400, 400)) == pytest.approx(0.805, abs=0.01)
    assert value("per", gaussian(0, 300, 1200)) == pytest.approx(0.966, abs=0.002)
    a, b = 300, 1200
    ratio = a / b
    assert value("stable_rank", gaussian(0, a, b)) == pytest.approx(a / (1 + math.sqrt(ratio)) ** 2, rel=0.02)
    condition = (1 + math.sqrt(ratio)) / (1 - math.sqrt(ratio))
    assert value("condition_number", gaussian(0, a, b)) == pytest.approx(condition, rel=0.03)
    assert compute("condition_number", np.diag([4.0, 2.0, 0.0])) == Measurement(2.0, "rank_deficient", 3, 3, 2)


def test_known_norms() -> None:
    matrix = np.array([[3.0, 0.0], [0.0, -4.0]])
    assert {name: value(name, matrix) for name in LENGTHS} == pytest.approx(
        {"spectral_norm": 4, "nuclear_norm": 7, "frobenius_norm": 5, "max_abs": 4, "inf_operator_norm": 4}
    )


def test_known_inequality() -> None:
    one_hot, size = np.zeros((10, 10)), 100
    one_hot[3, 4] = -2
    assert value("gini", one_hot) == pytest.approx(1 - 1 / size)
    assert value("hoyer", one_hot) == pytest.approx(1)
    assert value("gini", np.ones((10, 10))) == pytest.approx(0)
    assert value("hoyer", np.ones((10, 10))) == pytest.approx(0, abs=1e-12)
    assert value("gini", gaussian(0, 400, 400)) == pytest.approx(math.sqrt(2) - 1, rel=0.01)
    assert value("hoyer", gaussian(0, 400, 400)) == pytest.approx(0.2021, abs=0.002)
    assert value("gini", np.random.default_rng(0).random((400, 400))) == pytest.approx(1 / 3, rel=0.01)
    assert value("outlier_kurtosis", np.ones((5, 8))) == pytest.approx(1)
    assert value("outlier_kurtosis", np.eye(8)[[0, 0, 0]]) == pytest.approx(8)
    assert value("dead_units", np.eye(8)[[0, 1, 2]]) == pytest.approx(5 / 8)
    assert value("near_zero_fraction", np.eye(8)) == pytest.approx(56 / 64)
    assert value("massive_activation", np.array([[1.0, 1.0, -9.0]])) == pytest.approx(9)


def test_sums_over_many_float32_entries_are_not_float32_sums() -> None:
    entries = np.full((1500, 1500), 0.1, dtype=np.float32)
    assert value("frobenius_norm", entries) == pytest.approx(1500 * float(np.float32(0.1)), rel=1e-12)
    assert value("hoyer", entries) == pytest.approx(0, abs=1e-9)


def test_independent_data() -> None:
    assert independence_null("linear_cka", 128, 512, draws=3).mean() == pytest.approx(512 / (128 + 512), abs=0.01)
    assert abs(independence_null("debiased_cka", 128, 512).mean()) < 0.005
    assert independence_null("mutual_knn", 60, 30).mean() == pytest.approx(10 / 59, abs=0.02)
    with pytest.raises(PicoError, match="cca_mean has no null for 20 rows, 30 and 5 columns: n_too_small"):
        independence_null("cca_mean", 20, 30, 5)


def test_movement() -> None:
    before = gaussian(0, 6, 4)
    assert value("relative_change", 1.5 * before, before) == pytest.approx(0.5)
    assert value("distance_from_initialization", before + np.eye(6, 4), before) == pytest.approx(2)
    for name in ("relative_change", "distance_from_initialization"):
        assert value(name, before, before.copy()) == 0
