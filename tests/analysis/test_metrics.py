"""Known values, agreement with independent packages, invariances, and a status where there is no value."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from pico.analysis import METRICS, Matrix, Measurement, compute, independence_null
from pico.errors import PicoError

CATALOGUE = [
    "linear_cka", "debiased_cka", "minibatch_cka", "rbf_cka", "cca_mean", "svcca", "pwcca", "procrustes", "rsa",
    "mutual_knn", "effective_rank", "per", "per_min_dim", "rankme", "alpha_req", "stable_rank", "participation_ratio",
    "condition_number", "spectral_norm", "nuclear_norm", "frobenius_norm", "max_abs", "inf_operator_norm",
    "powerlaw_alpha", "powerlaw_d", "powerlaw_k", "mp_excess", "gini", "hoyer", "near_zero_fraction",
    "outlier_kurtosis", "massive_activation", "dead_units",
]  # fmt: skip
"""The metrics of single tensors and of representations; those of training, landscape and behaviour have own tests."""

GOLDEN = Path(__file__).parents[1] / "golden"
TENSORS = load_file(GOLDEN / "metrics.safetensors")
EXPECTED = json.loads((GOLDEN / "metrics.json").read_text())

MOVEMENT = ["relative_change", "distance_from_initialization"]
SINGLE = [name for name in CATALOGUE if METRICS[name].target is None]
REPRESENTATIONS = [name for name in CATALOGUE if METRICS[name].target is not None]
LENGTHS = ["spectral_norm", "nuclear_norm", "frobenius_norm", "max_abs", "inf_operator_norm"]
SCALE_FREE = [name for name in SINGLE if name not in LENGTHS]
SPECTRAL = [name for name in SINGLE if METRICS[name].spectral]
# sums over the entries, or over the features, depend on the basis; so do the weights of PWCCA
BASIS_FREE = [*SPECTRAL, "alpha_req", "frobenius_norm"]
# What an offset, a scale, a rotation of X, or an exchange of X and Y changes, if anything. Rounding near a threshold
# moves whole samples or dimensions in or out of mutual_knn and svcca, so those are tested where none lies near one.
ORDERED = ["minibatch_cka"]  # its batches are of successive rows, though one batch is not
DIRECTIONAL = ["pwcca"]
RANGES = {"procrustes": (0, 2), "debiased_cka": (-1, 1), "minibatch_cka": (-1, 1), "rsa": (-1, 1)}

quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def gaussian(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def rotation(seed: int, size: int) -> np.ndarray:
    return np.linalg.qr(gaussian(seed, size, size))[0]


def value(name: str, *tensors: object, **parameters: object) -> float:
    found = compute(name, *tensors, **parameters)
    assert found.value is not None, found
    return found.value


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


# Properties -----------------------------------------------------------------------------------------------------------

shapes = st.tuples(st.integers(8, 30), st.integers(1, 40))
seeds = st.integers(0, 10_000)


@pytest.mark.parametrize("name", REPRESENTATIONS)
@quick
@given(shape=st.tuples(st.integers(14, 30), st.integers(1, 11)), seed=seeds)
def test_a_representation_equals_itself(name: str, shape: tuple[int, int], seed: int) -> None:
    x = gaussian(seed, *shape)
    assert value(name, x, x.copy()) == pytest.approx(0 if name == "procrustes" else 1, abs=1e-7)


@pytest.mark.parametrize("name", REPRESENTATIONS)
@quick
@given(n=st.integers(14, 30), p=st.integers(2, 12), q=st.integers(1, 12), seed=seeds, scale=st.floats(1e-6, 1e6))
def test_comparisons_ignore_rotation_scale_offset_and_order(
    name: str, n: int, p: int, q: int, seed: int, scale: float
) -> None:
    x, y = gaussian(seed, n, p), gaussian(seed + 1, n, q)
    y[:, 0] += x[:, 0]
    expected = value(name, x, y)
    order = np.random.default_rng(seed).permutation(n)
    offset = gaussian(seed + 2, 1, p)
    close = {"rel": 1e-5, "abs": 1e-7}
    assert value(name, scale * x + scale * offset, y) == pytest.approx(expected, **close)
    assert value(name, x[order], y[order]) == pytest.approx(expected, **close)
    assert value(name, x, y @ rotation(seed + 1, q)) == pytest.approx(expected, **close)
    if name not in DIRECTIONAL:
        assert value(name, x @ rotation(seed, p), y) == pytest.approx(expected, **close)
        assert value(name, y, x) == pytest.approx(expected, **close)


@pytest.mark.parametrize("name", REPRESENTATIONS)
@quick
@given(n=st.integers(4, 30), p=st.integers(1, 40), q=st.integers(1, 40), seed=seeds)
def test_comparisons_stay_in_their_range(name: str, n: int, p: int, q: int, seed: int) -> None:
    found = compute(name, gaussian(seed, n, p), gaussian(seed + 1, n, q))
    if found.value is None:
        assert found.status == "n_too_small"
    else:
        low, high = RANGES.get(name, (0, 1))
        assert low <= found.value <= high


@quick
@given(shape=shapes, seed=seeds, scale=st.floats(1e-6, 1e6))
def test_single_tensor_metrics_scale_as_they_should(shape: tuple[int, int], seed: int, scale: float) -> None:
    x = gaussian(seed, *shape)
    for name in SCALE_FREE:
        a, b = compute(name, scale * x), compute(name, x)
        assert (a.status, a.rank) == (b.status, b.rank)
        assert a.value == (b.value and pytest.approx(b.value, rel=1e-5, abs=1e-6))
    for name in LENGTHS:
        assert value(name, scale * x) == pytest.approx(scale * value(name, x), rel=1e-9)


@quick
@given(shape=shapes, seed=seeds)
def test_single_tensors_ignore_what_they_should(shape: tuple[int, int], seed: int) -> None:
    x = gaussian(seed, *shape)
    order = np.random.default_rng(seed).permutation(shape[0])
    for name in SINGLE:
        expected = compute(name, x)
        same = [x[order], x[:, ::-1]]
        if name in BASIS_FREE:
            same.append(x @ rotation(seed, shape[1]))
        if name in SPECTRAL:  # alpha_req centres the columns, and not the rows
            same.append(x.T)
        for other in same:
            found = compute(name, other)
            assert found.status == expected.status
            assert found.value == (expected.value and pytest.approx(expected.value, rel=1e-5, abs=1e-9))


@quick
@given(shape=shapes, seed=seeds, low_rank=st.booleans())
def test_single_tensors_stay_in_their_range(shape: tuple[int, int], seed: int, low_rank: bool) -> None:
    x = gaussian(seed, *shape)
    if low_rank:
        x[:, 0] *= 50
        x[0] = 0
    smaller, (n, p) = min(shape), shape
    ranges = {
        **dict.fromkeys(("effective_rank", "stable_rank", "participation_ratio"), (1, smaller)),
        **dict.fromkeys(("per", "per_min_dim"), (1 / smaller, 1)),
        **dict.fromkeys(("mp_excess", "gini", "hoyer", "near_zero_fraction", "dead_units"), (0, 1)),
        "rankme": (1 - 1e-6, smaller + 1e-4),
        "condition_number": (1, math.inf),
        "massive_activation": (1, math.inf),
        "outlier_kurtosis": (1, p),
        "powerlaw_alpha": (1, math.inf),
        "powerlaw_d": (0, 1),
        "powerlaw_k": (2, smaller),
        "alpha_req": (0, math.inf),
        "max_abs": (0, value("spectral_norm", x)),
        "spectral_norm": (0, value("frobenius_norm", x)),
        "frobenius_norm": (0, value("nuclear_norm", x)),
        "nuclear_norm": (0, math.sqrt(smaller) * value("frobenius_norm", x)),
        "inf_operator_norm": (value("spectral_norm", x) / math.sqrt(n), math.sqrt(p) * value("spectral_norm", x)),
    }
    assert set(ranges) == set(SINGLE)
    for name, (low, high) in ranges.items():
        found = compute(name, x)
        if found.value is None:
            assert found.status == "n_too_small"
            assert name in ("powerlaw_alpha", "powerlaw_d", "powerlaw_k", "alpha_req")
        else:
            assert low - 1e-9 <= found.value <= high * (1 + 1e-9)


@pytest.mark.parametrize("name", SINGLE)
def test_float_types_and_frameworks_agree(name: str) -> None:
    exact = torch.from_numpy(gaussian(0, 24, 12)).bfloat16()  # holds in every type below
    expected = value(name, exact.double().numpy())
    single = exact.float()
    for other in (
        exact,
        exact.half(),
        single,
        exact.double(),
        single.numpy(),
        exact.half().numpy(),
        single.clone().requires_grad_(),
    ):
        assert value(name, other) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", [*REPRESENTATIONS, *MOVEMENT])
def test_float_types_agree_in_comparisons(name: str) -> None:
    x, y = (torch.from_numpy(gaussian(seed, 40, 12)).bfloat16() for seed in (0, 1))
    expected = value(name, x.double().numpy(), y.double().numpy())
    for kind in (torch.bfloat16, torch.float16, torch.float32):
        assert value(name, x.to(kind), y.to(kind)) == pytest.approx(expected, rel=1e-6)
    assert value(name, x.half().numpy(), y.float().numpy()) == pytest.approx(expected, rel=1e-6)


@quick
@given(n=st.integers(1, 12), k=st.integers(1, 6), p=st.integers(1, 12), seed=seeds)
def test_a_product_measures_as_its_entries_do(n: int, k: int, p: int, seed: int) -> None:
    left, right = gaussian(seed, n, k), gaussian(seed + 1, k, p)
    dense = left @ right
    for name in SINGLE:
        a, b = compute(name, Matrix.product(left, right)), compute(name, dense)
        if name in ("per", "condition_number") and k < min(n, p):  # over the structural rank
            continue
        if not (name.startswith("powerlaw") and k < min(n, p)):  # the same, by status
            assert a.status == b.status
        if b.value is not None:
            assert a.value == pytest.approx(b.value, rel=1e-6, abs=1e-9)
        assert (a.n, a.p) == (n, p)
    other = gaussian(seed + 2, n, 3)
    for name in REPRESENTATIONS:
        a, b = compute(name, Matrix.product(left, right), other), compute(name, dense, other)
        assert a.status == b.status
        assert a.value == (b.value and pytest.approx(b.value, rel=1e-6, abs=1e-9))


def test_a_product_is_measured_over_its_structural_rank() -> None:
    left, right = rotation(0, 16)[:, :4], rotation(1, 16)[:4]
    assert value("per", Matrix.product(left, right)) == pytest.approx(1)
    assert compute("condition_number", Matrix.product(left, right)).status == "ok"
    assert value("condition_number", Matrix.product(left, right)) == pytest.approx(1)


# Degenerate input -----------------------------------------------------------------------------------------------------

DEGENERATE = {
    "zero": np.zeros((12, 5)),
    "constant": np.full((12, 5), 0.1),
    "constant rows": np.outer(np.ones(12), [1.0, 2.0, -3.0, 0.1, 1e6]),
    "rank 1": np.outer(np.arange(12.0), [1.0, 2.0, 3.0]),
    "rank 2": gaussian(0, 12, 2) @ gaussian(1, 2, 5),
    "wide, rank 2": gaussian(0, 12, 2) @ gaussian(1, 2, 30),
    "noise on a constant": 1e6 + 1e-10 * gaussian(0, 12, 5),
    "equal rows but one": np.vstack([np.ones((11, 5)), np.arange(5.0)]),
    "one row": gaussian(0, 1, 5),
    "one column": gaussian(0, 12, 1),
    "one entry": np.array([[3.0]]),
    "two rows": gaussian(0, 2, 5),
    "no rows": np.zeros((0, 5)),
    "no columns": np.zeros((5, 0)),
    "vector": gaussian(0, 12),
    "three axes": gaussian(0, 3, 4, 5),
    "infinite": np.array([[1.0, np.inf], [2.0, 3.0], [4.0, 5.0], [0.0, 1.0]]),
    "nan": np.array([[1.0, np.nan], [2.0, 3.0], [4.0, 5.0], [0.0, 1.0]]),
    "all infinite": np.full((12, 5), -np.inf),
    "huge": gaussian(0, 12, 5) * 1e300,
    "tiny": gaussian(0, 12, 5) * 1e-300,
    "denormal": np.full((12, 5), 5e-324) * np.sign(gaussian(0, 12, 5)),
    "float32 edge": gaussian(0, 12, 5).astype(np.float32) * np.float32(1e38),
    "one row differs": np.eye(12, 5)[:, :1],
}


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("name", METRICS)
@pytest.mark.filterwarnings("error")
def test_degenerate_input_has_a_status_and_never_nan(name: str, kind: str) -> None:
    x = DEGENERATE[kind]
    metric = METRICS[name]
    regular = gaussian(1, *(x.shape if x.ndim > 1 else (len(x), 1)))
    for operands in ((x, x), (x, regular), (regular, x)) if metric.target else ((x,),):
        found = compute(name, *operands)
        assert found.status in ("ok", "zero", "rank_deficient", "n_too_small", "nonfinite")
        assert (found.value is None) == (found.status not in ("ok", "rank_deficient"))
        assert found.value is None or math.isfinite(found.value)
        if kind in ("infinite", "nan", "all infinite"):
            assert found.status == "nonfinite" or METRICS[name].min_rows > len(x)
    if kind in ("zero", "constant", "constant rows") and metric.target == "last":
        assert compute(name, x, regular).status == "zero"


@pytest.mark.parametrize("factor", [1e300, 1e200, 1e-200, 1e-300])
def test_extreme_scales_are_measured_as_any_other(factor: float) -> None:
    x, y = gaussian(0, 20, 5), gaussian(1, 20, 6)
    for name in SCALE_FREE:
        assert value(name, factor * x) == pytest.approx(value(name, x), rel=1e-6)
    for name in LENGTHS:
        assert value(name, factor * x) == pytest.approx(factor * value(name, x), rel=1e-6)
    for name in REPRESENTATIONS:
        assert value(name, factor * x, y) == pytest.approx(value(name, x, y), rel=1e-9)
        assert value(name, y, factor * x) == pytest.approx(value(name, y, x), rel=1e-9)


@pytest.mark.parametrize("name", ["cca_mean", "svcca", "pwcca"])
def test_cca_refuses_what_would_always_be_1(name: str) -> None:
    full = {"variance": 1.0} if name == "svcca" else {}
    assert compute(name, gaussian(0, 12, 11), gaussian(1, 12, 3), **full).status == "n_too_small"
    assert compute(name, gaussian(0, 12, 3), gaussian(1, 12, 40), **full).status == "n_too_small"
    assert compute(name, gaussian(0, 12, 10), gaussian(1, 12, 3), **full).status == "ok"


# Wrong calls ----------------------------------------------------------------------------------------------------------


def test_wrong_calls_say_what_is_right() -> None:
    x = gaussian(0, 10, 4)
    with pytest.raises(PicoError, match="did you mean 'linear_cka'"):
        compute("linear_ckaa", x, x)
    with pytest.raises(PicoError, match="needs two tensors"):
        compute("linear_cka", x)
    with pytest.raises(PicoError, match="looks at one tensor"):
        compute("per", x, x)
    with pytest.raises(PicoError, match="10 rows but Y has 9"):
        compute("linear_cka", x, x[:9])
    with pytest.raises(PicoError, match="4 columns but Y has 3"):
        compute("relative_change", x, x[:, :3])
    with pytest.raises(PicoError, match="no setting"):
        compute("near_zero_fraction", x, limit=3)


@pytest.mark.parametrize(
    ("name", "setting", "wrong"),
    [
        ("minibatch_cka", "batch", 3),
        ("rbf_cka", "bandwidth", 0),
        ("svcca", "variance", 1.5),
        ("rsa", "correlation", "kendall"),
        ("mutual_knn", "k", 0),
        ("rankme", "eps", -1e-7),
        ("alpha_req", "last", 4),
        ("powerlaw_alpha", "xmin", 0),
        ("powerlaw_d", "xmin", -1),
        ("powerlaw_k", "xmin", -1),
        ("near_zero_fraction", "threshold", -1),
        ("dead_units", "threshold", math.nan),
    ],
)
def test_settings_out_of_range_are_refused(name: str, setting: str, wrong: object) -> None:
    x = gaussian(0, 20, 8)
    with pytest.raises(PicoError, match=f"{name}'.*{setting}(.|\\n)*must be"):
        compute(name, *[x] * (1 if METRICS[name].target is None else 2), **{setting: wrong})
