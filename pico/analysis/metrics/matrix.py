"""A matrix and what metrics share of it: spectrum, centred rows, sorted magnitudes; each computed once, when needed.

Everything is float64 whatever the input's type. A matrix may be given by two factors, as the OV circuit is; then all
that does not depend on the basis of the columns comes from a small matrix with the same inner products between rows.
"""

import math
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pico.analysis.metrics.algebra import algebra

Array = NDArray[np.float64]

EPS64 = float(np.finfo(np.float64).eps)
EPS32 = float(np.finfo(np.float32).eps)


class Matrix:
    """n rows (samples) by p columns (features). Make one with `Matrix.of(array)` or `Matrix.product(left, right)`.

    The spectrum and all comparisons are taken of `unit`, the matrix over a power of two near its largest entry: that is
    exact, and squares of squares neither overflow nor vanish.
    """

    def __init__(
        self,
        dense: Array | None,
        *,
        p: int,
        dtype: str,
        factors: tuple[Array, Array] | None = None,
    ) -> None:
        """Takes the entries, or finite factors; `p` columns may be more than `dense` has (see `features`)."""
        self.dense = dense
        self.factors = factors
        """Left (n, k) and right (k, p), k < p, where the matrix was given by them."""
        self.n, self.p, self.dtype = len(factors[0] if factors else cast(Array, dense)), p, dtype

    @classmethod
    def of(cls, array: Any) -> "Matrix":
        """Makes one from a numpy or torch array of any float type; see `compute` for shapes."""
        if isinstance(array, Matrix):
            return array
        values, dtype = _float64(array)
        if values.ndim != 2:
            values = values.reshape(-1, 1) if values.ndim < 2 else values.reshape(math.prod(values.shape[:-1]), -1)
        return cls(values, p=values.shape[1], dtype=dtype)

    @classmethod
    def product(cls, left: Any, right: Any, dtype: str | None = None) -> "Matrix":
        """Makes `left @ right`, left (n, k) and right (k, p), without forming it unless entries are asked for.

        With right right^T = L L^T, the rows of left @ L have the inner products of the product's rows, so the same
        singular values and distances, in k columns instead of p. `dtype`: the type of the data, if not that of `left`.
        """
        (a, own), (b, _) = _float64(left), _float64(right)
        dtype = dtype or own
        if a.shape[1] >= b.shape[1] or not (np.isfinite(_size(a)) and np.isfinite(_size(b))):
            return cls(a @ b, p=b.shape[1], dtype=dtype)
        return cls(None, p=b.shape[1], dtype=dtype, factors=(a, b))

    @cached_property
    def features(self) -> Array:
        """(n, k), k <= p: rows with the inner products of the matrix's rows; where it is dense, the matrix itself."""
        if self.factors is None:
            return cast(Array, self.dense)
        (left, by_left), (right, by_right) = self._units
        try:  # many times faster than QR; the squaring costs what it costs in `spectrum`
            lower = np.asarray(np.linalg.cholesky(self._inner[1]), np.float64)
        except np.linalg.LinAlgError:  # the right factor has dependent rows
            lower = triangle(right.T).T
        return shifted(left @ lower, by_left + by_right)

    @cached_property
    def values(self) -> Array:
        """(n, p): the entries."""
        return self.features if self.factors is None else self.factors[0] @ self.factors[1]

    @cached_property
    def size(self) -> float:
        """The largest absolute entry, or, of a product, its Frobenius norm; NaN or infinite where any entry is."""
        if self.factors is None:
            return _size(self.features)
        left, right, exponent = self._inner
        return float(np.ldexp(np.sqrt(max(float(np.vdot(left, right)), 0.0)), exponent))

    @cached_property
    def _units(self) -> tuple[tuple[Array, int], tuple[Array, int]]:
        """The factors over powers of two near their largest entries, and those powers."""
        left, right = cast(tuple[Array, Array], self.factors)
        return _unit(left), _unit(right)

    @cached_property
    def _inner(self) -> tuple[Array, Array, int]:
        """Left^T left and right right^T, (k, k) each, of `_units`; and the sum of those powers of two."""
        (left, by_left), (right, by_right) = self._units
        return algebra().inner(left), algebra().inner(right.T), by_left + by_right

    @property
    def finite(self) -> bool:
        """No NaN and no infinity."""
        return bool(np.isfinite(self.size))

    @property
    def largest_rank(self) -> int:
        """The structural rank: the largest that the shape, or the factors, allow."""
        return min(self.n, self.features.shape[1] if self.factors is None else len(self.factors[1]))

    @cached_property
    def exponent(self) -> int:
        """The power of two that `unit` is divided by."""
        return int(np.frexp(self.size)[1])

    @cached_property
    def unit(self) -> Array:
        """(n, k): `features` / 2^exponent."""
        return shifted(self.features, -self.exponent)

    def scaled(self, value: float) -> float:
        """Brings a length measured on `unit` back to the matrix's own scale."""
        return float(np.ldexp(value, self.exponent))

    @cached_property
    def spectrum(self) -> Array:
        """(min(n, k),): singular values of `unit`, descending, from float64 Gram matrices of the smaller side.

        Of a product A B the squares are the eigenvalues of (A^T A)(B B^T), so that not even `features` is needed.

        Squaring costs half of float64's digits: values under sqrt(side * eps) of the largest cannot be told from 0, and
        are 0. States carry float32's digits, so nothing of theirs is lost; and this is many times faster than SVD.
        """
        if self.factors is not None and len(self.factors[1]) <= self.n:
            left, right, exponent = self._inner
            try:
                squares = algebra().product_eigenvalues(left, right)
                return shifted(_roots(squares), exponent - self.exponent)
            except np.linalg.LinAlgError:  # the right factor has dependent rows
                pass
        return singular_values(self.unit)

    @cached_property
    def energy(self) -> float:
        """The squared Frobenius norm of `unit`."""
        if self.factors is None:
            return float(np.sum(np.square(self.unit)))  # in pairs, which loses fewer digits than a dot product
        left, right, exponent = self._inner
        return float(np.ldexp(max(float(np.vdot(left, right)), 0.0), 2 * (exponent - self.exponent)))

    @cached_property
    def rank(self) -> int:
        """The numerical rank: singular values over 4 sqrt(max(n, p)) eps_float32 of the largest.

        That is what rounding every entry once to float32 can fake: a matrix of rounding errors has norm of order
        eps * sqrt(max) * rms. The customary max(n, p) * eps would call ordinary square weights of width 1536 deficient.
        """
        spectrum = self.spectrum
        return int((spectrum > 4 * np.sqrt(max(self.n, self.p)) * EPS32 * spectrum[0]).sum()) if spectrum[0] > 0 else 0

    @cached_property
    def centred(self) -> Array:
        """(n, k): `unit` less its column means; all 0 where nothing but rounding is left of it."""
        rows = self.unit - self.unit.mean(axis=0)
        if np.linalg.norm(rows) <= self.n * EPS64 * np.linalg.norm(self.unit):
            return np.zeros_like(rows)
        return rows

    @cached_property
    def row_energy(self) -> Array:
        """(n,): squared lengths of the centred rows: the diagonal of the centred Gram matrix."""
        return np.einsum("ij,ij->i", self.centred, self.centred)

    @cached_property
    def gram(self) -> Array:
        """(n, n): inner products of the centred rows."""
        return algebra().inner(self.centred.T)

    @cached_property
    def gram_energy(self) -> float:
        """The squared Frobenius norm of `gram`, from the smaller side."""
        if self.centred.shape[1] < self.n:
            return energy(algebra().inner(self.centred))
        return energy(self.gram)

    def squared_distances(self) -> Array:
        """Computes those between rows, (n, n), on the scale of `unit`; a new array, not kept."""
        return np.maximum(self.row_energy[:, None] + self.row_energy[None, :] - 2 * self.gram, 0.0)

    def unit_values(self) -> Array:
        """Computes the entries on the scale of `unit`, (n, p); not kept."""
        if self.factors is None:
            return self.unit
        return shifted(self.factors[0], -self.exponent) @ self.factors[1]

    @cached_property
    def magnitudes(self) -> NDArray:
        """(n * p,): absolute entries on the scale of `unit`, ascending; in float32, unless the data are wider.

        Sorting is the dearest step on wide activations; in float32, which holds every stored entry, it takes half.
        """
        if self.dtype not in ("float32", "bfloat16", "float16"):
            return algebra().sorted_magnitudes(self.unit_values())
        if self.factors is None:
            return algebra().sorted_magnitudes(self.unit.astype(np.float32))
        (left, by_left), (right, by_right) = self._units
        narrow = left.astype(np.float32), right.astype(np.float32)
        exponent = by_left + by_right - self.exponent
        if abs(exponent) < 64:  # on the smaller matrix; far above 0 only where nearly all cancels
            return algebra().sorted_magnitudes(np.ldexp(narrow[0], exponent), narrow[1])
        return np.ldexp(algebra().sorted_magnitudes(*narrow), exponent)


class Trajectory:
    """The states of one parameter, oldest first, up to now. Each is made when it is asked for, and none is held."""

    def __init__(self, points: Sequence[Callable[[], Matrix]], leg: Callable[[int], float] | None = None) -> None:
        """Takes what makes each state; leg: gives the distance of points i and i + 1, where it is known already."""
        if not points:
            raise ValueError("a trajectory has at least one point")
        self._points, self._leg = points, leg

    @classmethod
    def of(cls, earlier: Any, now: Matrix) -> "Trajectory":
        """Makes one from the earlier states, a list or tuple of arrays or only one array, and the present one."""
        several = earlier if isinstance(earlier, list | tuple) else [earlier]
        matrices = [*map(Matrix.of, several), now]
        return cls([lambda one=one: one for one in matrices])  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self._points)

    def __getitem__(self, index: int) -> Matrix:
        return self._points[index]()

    def length(self) -> float:
        """Returns the sum of the distances between successive points; 0 for one point."""
        return float(sum(self._leg(i) if self._leg else distance(self[i + 1], self[i]) for i in range(len(self) - 1)))


def distance(x: Matrix, y: Matrix) -> float:
    """Computes |X - Y|_F such that neither squares of large entries overflow nor those of small ones vanish."""
    exponent = max(x.exponent, y.exponent)
    length = np.linalg.norm(shifted(x.values, -exponent) - shifted(y.values, -exponent))
    return float(np.ldexp(length, exponent))


def shifted(array: Array, exponent: int) -> Array:
    """Returns `array` * 2^exponent, exactly."""
    if abs(exponent) < 1000:
        return array * 2.0**exponent
    return np.ldexp(array, exponent)  # slower, but the factor itself would overflow


def _size(array: Array) -> float:
    """Returns the largest absolute entry; NaN where any entry is."""
    return float(max(np.max(array, initial=0.0), -np.min(array, initial=0.0)))


def _unit(array: Array) -> tuple[Array, int]:
    """Returns the array over a power of two near its largest entry, and that power."""
    exponent = int(np.frexp(_size(array))[1])
    return shifted(array, -exponent), exponent


def triangle(array: Array) -> Array:
    """Computes R of array = QR: (min(shape), columns)."""
    return np.asarray(np.linalg.qr(array, mode="r"))


def narrow(rows: Array) -> Array:
    """Returns rows with the same inner products in the fewest columns, (n, min(n, k))."""
    return rows if rows.shape[1] <= rows.shape[0] else triangle(rows.T).T


def singular_values(rows: Array) -> Array:
    """Computes those of a (n, k) matrix, descending, from its smaller side's Gram matrix; see `Matrix.spectrum`."""
    gram = algebra().inner(rows.T if rows.shape[0] <= rows.shape[1] else rows)
    return _roots(algebra().eigenvalues(gram))


def _roots(squares: NDArray) -> Array:
    """Takes the roots of a Gram matrix's ascending eigenvalues, descending; 0 for what is rounding of the largest."""
    squares = squares[::-1]
    return np.sqrt(np.where(squares > len(squares) * EPS64 * squares[:1], squares, 0.0))


def energy(array: Array) -> float:
    """Computes the squared Frobenius norm."""
    return float(np.vdot(array, array))


def _float64(array: Any) -> tuple[Array, str]:
    """Returns the array in float64 and the name of its own type.

    torch is not imported for it: who has a tensor has torch.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return array.detach().cpu().to(torch.float64).numpy(), str(array.dtype).removeprefix("torch.")
    array = np.asarray(array)
    return array.astype(np.float64), str(array.dtype)
