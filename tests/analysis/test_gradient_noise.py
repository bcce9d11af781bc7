"""Gradients of known noise scale, and loss curves with known spikes."""

import numpy as np
import pytest

from pico.analysis.gradient_noise import gradient_moments, gradient_noise_scale, gradient_snr, loss_spike_score

D, SIGNAL, NOISE = 50, 0.25, 4.0  # |G|^2 and tr S: a noise scale of 16
SMALL, LARGE = 4, 32


def norms(steps: int, seed: int = 0, signal: float = SIGNAL) -> tuple[np.ndarray, np.ndarray]:
    """Squared norms of mean gradients: (steps, micro-batches), (steps,)."""
    generator = np.random.default_rng(seed)
    true = np.full(D, np.sqrt(signal / D))
    examples = true + generator.standard_normal((steps, LARGE, D)) * np.sqrt(NOISE / D)
    micro = examples.reshape(steps, LARGE // SMALL, SMALL, D).mean(axis=2)
    return np.sum(micro**2, axis=2), np.sum(micro.mean(axis=1) ** 2, axis=1)


def test_known_noise_is_found() -> None:
    small, large = norms(3000)
    signal, noise = gradient_moments(small, large, SMALL, LARGE)
    assert signal == pytest.approx(SIGNAL, rel=0.03)
    assert noise == pytest.approx(NOISE, rel=0.03)
    assert gradient_noise_scale(small, large, SMALL, LARGE) == pytest.approx(NOISE / SIGNAL, rel=0.05)
    assert gradient_snr(small, large, SMALL, LARGE) == pytest.approx(LARGE * SIGNAL / NOISE, rel=0.05)


def test_expectations_give_exact_moments() -> None:
    small, large = [SIGNAL + NOISE / SMALL], [SIGNAL + NOISE / LARGE]
    assert gradient_moments(small, large, SMALL, LARGE) == pytest.approx((SIGNAL, NOISE))


def test_steps_are_averaged_before_the_division() -> None:
    small, large = norms(2000, seed=1, signal=0.05)
    one_by_one = [gradient_noise_scale(a[None], b[None], SMALL, LARGE) for a, b in zip(small, large, strict=True)]
    assert any(value is None for value in one_by_one)  # single steps do give a negative |G|^2
    moments = np.array([gradient_moments(a[None], b[None], SMALL, LARGE) for a, b in zip(small, large, strict=True)])
    expected = moments[:, 1].mean() / moments[:, 0].mean()
    assert gradient_noise_scale(small, large, SMALL, LARGE) == pytest.approx(expected)


def test_pure_signal_and_pure_noise() -> None:
    assert gradient_noise_scale([2.0], [2.0], 1, 8) == 0
    assert gradient_snr([2.0], [2.0], 1, 8) is None
    assert gradient_noise_scale([8.0], [1.0], 1, 8) is None
    for batches in ((4, 4), (0, 4), (8, 4)):
        with pytest.raises(ValueError, match="batch sizes"):
            gradient_moments([1.0], [1.0], *batches)
    with pytest.raises(ValueError, match="shapes"):
        gradient_moments([1.0, 2.0], [1.0], 1, 4)


def test_spikes_are_counted() -> None:
    generator = np.random.default_rng(0)
    loss = 5 - 0.002 * np.arange(300) + 0.01 * generator.standard_normal(300)
    assert loss_spike_score(loss, window=50) == 0
    loss[[100, 101, 250]] += 1.0
    assert loss_spike_score(loss, window=50) == 3 / 250
    loss[200] = np.nan
    assert loss_spike_score(loss, window=50) == 4 / 250
    assert loss_spike_score(np.full(100, 2.0)) == 0
    assert loss_spike_score(1000 * loss + 7, window=50) == 4 / 250
    assert loss_spike_score(loss[:50], window=50) is None
