"""Inequality of entries and features, against the definitions written out entry by entry."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pico.analysis.metrics.catalogue import compute

shapes = st.tuples(st.integers(2, 9), st.integers(1, 9))


def value(name: str, x: np.ndarray, **parameters: object) -> float:
    found = compute(name, x, **parameters)
    assert found.value is not None, found
    return found.value


@settings(max_examples=25, deadline=None)
@given(shape=shapes, seed=st.integers(0, 1000), zeros=st.floats(0, 0.4))
def test_metrics_of_entries_written_out(shape: tuple[int, int], seed: int, zeros: float) -> None:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(shape) * (generator.random(shape) >= zeros)
    x[0, 0] = 3
    entries = [abs(float(one)) for one in x.ravel()]
    count, total = len(entries), sum(entries)
    # the mean absolute difference of all pairs over twice the mean: Gini's own definition
    expected = sum(abs(a - b) for a in entries for b in entries) / (2 * count * total)
    assert value("gini", x) == pytest.approx(expected, abs=1e-9)
    length = math.sqrt(sum(one * one for one in entries))
    expected = (math.sqrt(count) - total / length) / (math.sqrt(count) - 1)
    assert value("hoyer", x) == pytest.approx(expected, abs=1e-9)
    for threshold in (0.0, 0.3):
        small = sum(one <= threshold * length / math.sqrt(count) for one in entries)
        assert value("near_zero_fraction", x, threshold=threshold) == pytest.approx(small / count)
    found = compute("massive_activation", x)
    median = statistics.median(entries)
    assert found.value == (pytest.approx(max(entries) / median) if median else None)


@settings(max_examples=25, deadline=None)
@given(shape=shapes, seed=st.integers(0, 1000), silent=st.integers(0, 4))
def test_metrics_of_features_written_out(shape: tuple[int, int], seed: int, silent: int) -> None:
    x = np.random.default_rng(seed).standard_normal(shape)
    x[:, 1 : 1 + silent] *= 1e-9
    n, p = shape
    powers = [sum(float(x[i, j]) ** 2 for i in range(n)) / n for j in range(p)]
    expected = (sum(one * one for one in powers) / p) / (sum(powers) / p) ** 2
    assert value("outlier_kurtosis", x) == pytest.approx(expected, rel=1e-9)
    assert value("dead_units", x) == pytest.approx(min(silent, p - 1) / p)
    assert value("dead_units", x, threshold=0) == 0
