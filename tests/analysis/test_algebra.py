"""The same numbers from torch, on every device that is here, as from numpy."""

import numpy as np
import pytest
import torch

from pico.analysis.metrics import algebra
from pico.analysis.metrics.algebra import OnCPU, OnTorch, on_device
from pico.analysis.metrics.catalogue import compute
from pico.analysis.metrics.matrix import Matrix

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_torch_and_numpy_agree(device: str) -> None:
    rng = np.random.default_rng(0)
    rows, wide = rng.normal(size=(40, 12)), rng.normal(size=(12, 70))
    one, other = OnTorch(device), OnCPU()
    a, b = other.inner(rows), other.inner(wide.T)
    assert np.allclose(one.inner(rows), a, rtol=1e-12)
    assert np.allclose(one.eigenvalues(a), other.eigenvalues(a), rtol=1e-10)
    assert np.allclose(one.product_eigenvalues(a, b), other.product_eigenvalues(a, b), rtol=1e-9)
    for factors in ((rows,), (rows, wide)):
        assert np.allclose(one.sorted_magnitudes(*factors), other.sorted_magnitudes(*factors), rtol=1e-11, atol=1e-13)
    narrow = rows.astype(np.float32)
    assert one.sorted_magnitudes(narrow).dtype == other.sorted_magnitudes(narrow).dtype == np.float32


@pytest.mark.parametrize("device", DEVICES)
def test_both_say_that_a_matrix_is_not_positive_definite(device: str) -> None:
    for one in (OnTorch(device), OnCPU()):
        with pytest.raises(np.linalg.LinAlgError):
            one.product_eigenvalues(np.eye(3), np.diag([1.0, 1.0, -1.0]))


@pytest.mark.parametrize("name", ["per", "condition_number", "gini", "frobenius_norm", "effective_rank"])
def test_metrics_are_the_same_on_another_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    left, right = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(8, 60)).astype(np.float32)
    expected = compute(name, Matrix.product(left, right))
    monkeypatch.setattr(algebra, "_current", [OnTorch(DEVICES[-1])])
    assert compute(name, Matrix.product(left, right)).value == pytest.approx(expected.value, rel=1e-6)


def test_the_device_is_the_former_one_after_an_error() -> None:
    before = algebra.algebra()
    with pytest.raises(ValueError, match="stop"), on_device("cpu"):
        raise ValueError("stop")
    assert algebra.algebra() is before
