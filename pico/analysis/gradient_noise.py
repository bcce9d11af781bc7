"""How noisy gradients are, from norms over small and large batches; and spikes of a loss curve. Pure functions.

A training step that averages gradients over b examples a micro-batch and B a batch has seen |g_b|^2 and |g_B|^2. With G
the true gradient and S the covariance of one example's, E|g_b|^2 = |G|^2 + tr S / b (McCandlish et al. 2018, arXiv
1812.06162, appendix A.1). Two batch sizes give two equations. The estimates of one step are so noisy that |G|^2 may
come out negative, and a mean of ratios is biased: both are averaged over steps FIRST, and then divided.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class GradientMoments(NamedTuple):
    """Unbiased estimates, in squared units of the gradient."""

    signal: float
    """|G|^2: the squared length of the true gradient. May be negative where noise outweighs it."""
    noise: float
    """tr S: the summed variance of the gradient of one example."""


def gradient_moments(small: ArrayLike, large: ArrayLike, small_batch: float, large_batch: float) -> GradientMoments:
    """|G|^2 and tr S, averaged over steps.

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


def gradient_noise_scale(small: ArrayLike, large: ArrayLike, small_batch: float, large_batch: float) -> float | None:
    """tr S / |G|^2, the simple noise scale: the batch size at which noise and signal are equal, in examples.

    Batches far below it are mostly noise, far above it mostly redundant. Arguments as for `gradient_moments`. None
    where the estimate of |G|^2 is not positive: more steps, or larger batches, are needed.
    """
    signal, noise = gradient_moments(small, large, small_batch, large_batch)
    return noise / signal if signal > 0 else None


def gradient_snr(small: ArrayLike, large: ArrayLike, small_batch: float, large_batch: float) -> float | None:
    """|G|^2 / (tr S / B): signal over noise, in power, of the gradient of the large batch.

    It is B over the noise scale. Arguments as for `gradient_moments`. None where the estimate of tr S is not positive.
    """
    signal, noise = gradient_moments(small, large, small_batch, large_batch)
    return signal / (noise / large_batch) if noise > 0 else None


def loss_spike_score(loss: ArrayLike, *, window: int = 32, threshold: float = 6.0) -> float | None:
    """The share of steps whose loss lies over `threshold` robust deviations above the `window` losses before it.

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
