"""Metrics of tensors ignore what they should, stay in their range, and agree between float types."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from metric_cases import (
    BASIS_FREE,
    DIRECTIONAL,
    LENGTHS,
    MOVEMENT,
    RANGES,
    REPRESENTATIONS,
    SCALE_FREE,
    SINGLE,
    SPECTRAL,
    gaussian,
    rotation,
    value,
)

from pico.analysis.metrics.catalogue import Matrix, compute

quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


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


@pytest.mark.parametrize("scale", [1e-160, 1.0, 1e160])
def test_a_product_with_a_dependent_factor_has_the_spectrum_of_its_entries(scale: float) -> None:
    rng = np.random.default_rng(3)
    left, right = rng.normal(size=(30, 6)), rng.normal(size=(6, 40))
    right[4] = right[0] - 2 * right[1]  # Cholesky's factor does not exist, or is rounding
    left, right = left * scale, right / scale
    expected = np.linalg.svd(left @ right, compute_uv=False)[:6]
    found = Matrix.product(left, right)
    assert np.allclose([found.scaled(one) for one in found.spectrum], expected, rtol=1e-9, atol=1e-6 * expected[0])
    assert np.sqrt(found.energy) == pytest.approx(np.linalg.norm(found.unit), rel=1e-9)
    assert found.scaled(np.sqrt(found.energy)) == pytest.approx(np.linalg.norm(left @ right), rel=1e-9)


def test_a_product_is_measured_over_its_structural_rank() -> None:
    left, right = rotation(0, 16)[:, :4], rotation(1, 16)[:4]
    assert value("per", Matrix.product(left, right)) == pytest.approx(1)
    assert compute("condition_number", Matrix.product(left, right)).status == "ok"
    assert value("condition_number", Matrix.product(left, right)) == pytest.approx(1)
