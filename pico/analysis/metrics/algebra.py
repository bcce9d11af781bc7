"""The few dense operations that analysis spends its time on: numpy on the CPU, the same steps in torch on a GPU.

Both take and give numpy arrays. float64 on either side, so their results differ by float64's rounding alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Array = NDArray[np.float64]


class OnCPU:
    """numpy and LAPACK: everything here that may run on another device."""

    def inner(self, rows: Array) -> Array:
        """Computes rows^T rows: (n, k) -> (k, k)."""
        return rows.T @ rows

    def eigenvalues(self, symmetric: Array) -> Array:
        """Computes the eigenvalues, ascending: (k, k) -> (k,)."""
        return np.asarray(np.linalg.eigvalsh(symmetric), np.float64)

    def product_eigenvalues(self, a: Array, b: Array) -> Array:
        """Computes those of a b, (k,) ascending, b positive definite. Raises LinAlgError where it is not."""
        return np.asarray(
            scipy.linalg.eigh(a, b, type=2, driver="gv", eigvals_only=True, check_finite=False), np.float64
        )

    def sorted_magnitudes(self, left: NDArray, right: NDArray | None = None) -> NDArray:
        """Returns the absolute entries of left, or of left @ right, ascending: (entries,), of their type."""
        entries = np.abs(left if right is None else left @ right).reshape(-1)
        entries.sort()
        return entries


class OnTorch(OnCPU):
    """torch on the device of that name. TF32 is off in torch unless switched on, so float32 products are true ones."""

    def __init__(self, device: str) -> None:
        import torch

        self._torch, self._device = torch, device

    def inner(self, rows: Array) -> Array:
        given = self._to(rows)
        return self._from(given.T @ given)

    def eigenvalues(self, symmetric: Array) -> Array:
        return self._from(self._torch.linalg.eigvalsh(self._to(symmetric)))

    def product_eigenvalues(self, a: Array, b: Array) -> Array:
        lower, failed = self._torch.linalg.cholesky_ex(self._to(b))
        if int(failed):
            raise np.linalg.LinAlgError("not positive definite")
        return self._from(self._torch.linalg.eigvalsh(lower.T @ self._to(a) @ lower))

    def sorted_magnitudes(self, left: NDArray, right: NDArray | None = None) -> NDArray:
        entries = self._to(left) if right is None else self._to(left) @ self._to(right)
        return self._from(entries.abs().flatten().sort().values)

    def _to(self, array: NDArray) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _from(self, tensor: Any) -> NDArray:
        return tensor.cpu().numpy()


_current: list[OnCPU] = [OnCPU()]


def algebra() -> OnCPU:
    """Returns the operations in force: the CPU's, or within `on_device` the GPU's."""
    return _current[-1]


@contextmanager
def on_device(device: str) -> Iterator[None]:
    """Makes `algebra()` work on that device within: "cpu", or one of torch's, as "cuda"."""
    _current.append(OnCPU() if device == "cpu" else OnTorch(device))
    try:
        yield
    finally:
        _current.pop()
