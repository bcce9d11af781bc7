"""Metrics of gradient noise, from norms over small and large batches, and of spikes of a loss curve. Pure functions.

A training step that averages gradients over b examples a micro-batch and B a batch has seen |g_b|^2 and |g_B|^2. With G
the true gradient and S the covariance of one example's, E|g_b|^2 = |G|^2 + tr S / b (McCandlish et al. 2018, arXiv
1812.06162, appendix A.1). Two batch sizes give two equations. The estimates of one step are so noisy that |G|^2 may
come out negative, and a mean of ratios is biased: both are averaged over steps FIRST, and then divided.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pico.analysis.metrics.matrix import Matrix
from pico.analysis.metrics.registry import Undefined, metric, require

Array = NDArray[np.float64]


class GradientMoments(NamedTuple):
    """Unbiased estimates, in squared units of the gradient."""

    signal: float
    """|G|^2: the squared length of the true gradient. May be negative where noise outweighs it."""
    noise: float
    """tr S: the summed variance of the gradient of one example."""


def gradient_moments(small: ArrayLike, large: ArrayLike, small_batch: float, large_batch: float) -> GradientMoments:
    """Estimates |G|^2 and tr S, averaged over steps.

    small: (steps,) or (steps, micro-batches): squared norms of gradients averaged over `small_batch` examples (or
    tokens: the noise is then a token's). large: (steps,): of those averaged over `large_batch`. Raises ValueError where
    shapes or batch sizes do not fit, or there are no steps.
    """
    if not 0 < small_batch < large_batch:
        raise ValueError(f"batch sizes {small_batch} and {large_batch}: the first must be smaller, and above 0")
    little, much = np.asarray(small, np.float64), np.asarray(large, np.float64)
    if much.ndim != 1 or len(little) != len(much) or little.ndim not in (1, 2) or little.size == 0:
        raise ValueError(f"squared norms of shapes {little.shape} and {much.shape}: need (steps, ...) and (steps,)")
    mean_small, mean_large = float(little.mean()), float(much.mean())
    signal = (large_batch * mean_large - small_batch * mean_small) / (large_batch - small_batch)
    noise = (mean_small - mean_large) / (1 / small_batch - 1 / large_batch)
    return GradientMoments(signal, noise)


@metric(
    definition="tr S / |G|^2 in tokens; X (steps, small batches) and Y (steps, 1) squared gradient norms; |G|^2 = "
    "(B |g_B|^2 - b |g_b|^2) / (B - b), tr S = (|g_b|^2 - |g_B|^2) / (1/b - 1/B), averaged over steps first",
    source="McCandlish et al. 2018, arXiv 1812.06162, appendix A.1",
    types="N",
    target="batch",
)
def gradient_noise_scale(x: Matrix, y: Matrix, *, small_batch: float = 1.0, large_batch: float = 2.0) -> float:
    """Computes the simple noise scale: the batch size, in the units given, at which noise and signal are equal.

    Batches far below it are mostly noise, far above it mostly redundant. Status n_too_small where the estimate of
    |G|^2 is not positive: more steps, or larger batches, are needed.
    """
    signal, noise = _moments(x, y, small_batch, large_batch)
    if signal <= 0:
        raise Undefined("n_too_small")
    return noise / signal


@metric(
    definition="B |G|^2 / tr S, X, Y and both estimates as for gradient_noise_scale",
    source="McCandlish et al. 2018, arXiv 1812.06162, appendix A.1",
    types="N",
    target="batch",
)
def gradient_snr(x: Matrix, y: Matrix, *, small_batch: float = 1.0, large_batch: float = 2.0) -> float:
    """Computes signal over noise, in power, of the gradient of the large batch: B over the noise scale."""
    signal, noise = _moments(x, y, small_batch, large_batch)
    if noise <= 0:
        raise Undefined("n_too_small")
    return signal / (noise / large_batch)


def _moments(x: Matrix, y: Matrix, small_batch: float, large_batch: float) -> GradientMoments:
    require(0 < small_batch < large_batch, "gradient noise", "small_batch", small_batch, "above 0, below large_batch")
    if not (np.any(x.values) or np.any(y.values)):
        raise Undefined("zero")
    return gradient_moments(x.values, y.values.mean(axis=1), small_batch, large_batch)


@metric(
    definition="share of steps whose loss is over `threshold` robust deviations above the `window` losses before; X "
    "the loss of every step, (steps, 1)",
    source="OLMo et al. 2025, arXiv 2501.00656 (with median and median absolute deviation)",
    types="L",
)
def loss_spike_score(x: Matrix, *, window: int = 32, threshold: float = 6.0) -> float:
    """Computes the share of steps at which the loss jumps. Status n_too_small where no step has a full window."""
    found = spike_score(x.values[:, 0], window=window, threshold=threshold)
    if found is None:
        raise Undefined("n_too_small")
    return found


def spike_score(loss: ArrayLike, *, window: int = 32, threshold: float = 6.0) -> float | None:
    """Returns the share of steps with a loss over `threshold` robust deviations above the `window` losses before.

    loss: (steps,). The baseline is the median of the window, the deviation 1.4826 times its median absolute deviation
    (Gaussian: the standard deviation), so that an earlier spike does not hide a later one. Steps without a full window
    do not count. A loss that is not finite is a spike, and takes no part in later baselines. None where no step has a
    full window. After the spike score of OLMo 2, arXiv 2501.00656, which takes a rolling mean and standard deviation.
    """
    values = np.asarray(loss, np.float64)
    if values.ndim != 1 or window < 2:
        raise ValueError(f"a loss curve of shape {values.shape}, window {window}: (steps,) and at least 2 are needed")
    if len(values) <= window:
        return None
    before = np.lib.stride_tricks.sliding_window_view(values, window)[:-1]
    before = np.where(np.isfinite(before), before, np.nan)
    known = np.isfinite(before).sum(axis=1) >= 2
    centre, spread = np.full(len(before), np.inf), np.zeros(len(before))
    centre[known] = np.nanmedian(before[known], axis=1)
    spread[known] = 1.4826 * np.nanmedian(np.abs(before[known] - centre[known, None]), axis=1)
    now = values[window:]
    # of a curve without any noise, the last bits are not spikes
    least = 1e-9 * np.abs(np.where(known, centre, 0.0))
    return float(np.mean(~np.isfinite(now) | (now > centre + threshold * spread + least)))
