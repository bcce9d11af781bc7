"""Movement with a known answer: straight lines, random walks, there and back."""

import numpy as np
import pytest

from pico.analysis.metrics.catalogue import compute


def gaussian(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_a_straight_line_has_cosine_1_and_ratio_1() -> None:
    start, way = gaussian(0, 12, 8), gaussian(1, 12, 8)
    points = [start + t * way for t in (0, 1, 3, 4)]
    assert compute("update_cosine", points[3] - points[2], points[2] - points[1]).value == pytest.approx(1)
    assert compute("path_over_displacement", points[3], points[:3]).value == pytest.approx(1)


def test_there_and_back() -> None:
    a, b = gaussian(0, 12, 8), gaussian(1, 12, 8)
    assert compute("update_cosine", a - b, b - a).value == pytest.approx(-1)
    assert compute("path_over_displacement", a, [a, b]).status == "zero"
    assert compute("path_over_displacement", (a + b) / 2, [a, b]).value == pytest.approx(3)


def test_a_random_walk_is_sqrt_steps_long() -> None:
    walk = np.cumsum(gaussian(0, 65, 40, 50), axis=0)
    assert compute("path_over_displacement", walk[-1], list(walk[:-1])).value == pytest.approx(8, rel=0.05)
    assert compute("update_cosine", walk[2] - walk[1], walk[1] - walk[0]).value == pytest.approx(0, abs=0.1)


def test_update_to_weight_is_a_steps() -> None:
    w = gaussian(0, 6, 5)
    assert compute("update_to_weight_rms", w, 0.9 * w).value == pytest.approx(0.1)
    assert compute("update_to_weight_rms", w, 0.9 * w, steps=10).value == pytest.approx(0.01)
    assert compute("update_to_weight_rms", 1e-300 * w, 0.9e-300 * w).value == pytest.approx(0.1)
    assert compute("update_to_weight_rms", 0 * w, w).status == "zero"


def test_subspace_overlap() -> None:
    basis = np.linalg.qr(gaussian(0, 20, 20))[0]
    right = np.linalg.qr(gaussian(1, 30, 30))[0][:, :20]
    strengths = np.where(np.arange(20) < 4, 10.0, 1.0)
    x = basis @ np.diag(strengths) @ right.T
    for shift, expected in ((0, 1), (1, 0.75), (4, 0)):
        y = np.roll(basis, shift, axis=1) @ np.diag(strengths) @ right.T
        assert compute("subspace_overlap", x, y).value == pytest.approx(expected, abs=1e-9)
        assert compute("subspace_overlap", x.T[:, ::-1], x.T[:, ::-1]).value == pytest.approx(1)
    by_chance = [compute("subspace_overlap", gaussian(s, 40, 60), gaussian(s + 99, 40, 60)).value for s in range(20)]
    assert np.mean(by_chance) == pytest.approx(4 / 40, rel=0.3)
    assert compute("subspace_overlap", x, x, k=20).status == "n_too_small"
