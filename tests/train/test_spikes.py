"""The spike detector: what it names, and what it does not."""

import math
import random

from pico.train.curve import SpikeDetector


def test_a_jump_is_named_with_the_level_before_it_and_does_not_hide_the_next():
    detector, noise = SpikeDetector(window=32), random.Random(0)
    found = {}
    for step in range(200):
        loss = 3.0 - step / 200 + noise.gauss(0, 0.02) + (1.0 if step in (100, 103) else 0.0)
        if (before := detector.baseline(loss)) is not None:
            found[step] = before
    assert list(found) == [100, 103]
    assert all(abs(value - 2.55) < 0.1 for value in found.values())


def test_nothing_is_a_spike_before_the_window_is_full_or_on_a_level_curve():
    detector = SpikeDetector(window=8)
    assert all(detector.baseline(loss) is None for loss in (1, 50, 1, 1, 1, 1, 1, 1))
    assert all(detector.baseline(1.0) is None for _ in range(50))
    assert detector.baseline(1.1) == 1.0


def test_a_loss_that_is_not_finite_does_not_spoil_the_baseline():
    detector = SpikeDetector(window=8)
    for _ in range(8):
        detector.baseline(2.0)
    assert detector.baseline(math.inf) == 2.0
    assert detector.baseline(2.0) is None
    assert detector.baseline(3.0) == 2.0
