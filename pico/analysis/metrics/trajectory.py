"""A parameter's way through training: the matrices it was, in order, and how far apart they lie."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pico.analysis.metrics.matrix import Matrix, shifted


def distance(x: Matrix, y: Matrix) -> float:
    """|X - Y|_F, where neither the squares of large entries overflow nor those of small ones vanish."""
    exponent = max(x.exponent, y.exponent)
    length = np.linalg.norm(shifted(x.values, -exponent) - shifted(y.values, -exponent))
    return float(np.ldexp(length, exponent))


class Trajectory:
    """The states of one parameter, oldest first, up to now. Each is made when it is asked for, and none is held."""

    def __init__(self, points: Sequence[Callable[[], Matrix]], leg: Callable[[int], float] | None = None) -> None:
        """points: what makes each state; at least one. leg: gives the distance from point i to point i + 1, where
        that is known without making them."""
        if not points:
            raise ValueError("a trajectory has at least one point")
        self._points, self._leg = points, leg

    @classmethod
    def of(cls, earlier: Any, now: Matrix) -> "Trajectory":
        """From the earlier states, a list or tuple of arrays or only one array, and the present one."""
        several = earlier if isinstance(earlier, list | tuple) else [earlier]
        matrices = [*map(Matrix.of, several), now]
        return cls([lambda one=one: one for one in matrices])  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self._points)

    def __getitem__(self, index: int) -> Matrix:
        return self._points[index]()

    def length(self) -> float:
        """The sum of the distances between successive points; 0 for one point."""
        return float(sum(self._leg(i) if self._leg else distance(self[i + 1], self[i]) for i in range(len(self) - 1)))
