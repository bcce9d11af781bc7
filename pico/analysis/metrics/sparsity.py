"""Metrics of how unequal the entries, or the features, of one matrix are. All are unchanged by its scale."""

import numpy as np

from pico.analysis.metrics.matrix import Array, Matrix
from pico.analysis.metrics.registry import Undefined, metric, nonzero, require

BLOCK = 2**15
RAMP = np.arange(BLOCK, dtype=np.float64)


@metric(
    definition="sum (2i - N - 1) |x|_(i) / (N sum |x|), entries ascending; one-hot 1 - 1/N, half-normal sqrt 2 - 1",
    source="Hurley & Rickard 2009, arXiv 0811.4706",
    types="AWG",
    default=True,
)
def gini(x: Matrix) -> float:
    """Computes the inequality of absolute entries: 0 where all are equal, towards 1 where one has everything."""
    count, total, weighted = len(x.magnitudes), 0.0, 0.0
    for start in range(0, count, BLOCK):  # in float64 while it is in the processor's cache
        entries = x.magnitudes[start : start + BLOCK].astype(np.float64)
        in_block = float(entries.sum())
        total += in_block
        weighted += (2 * start + 1 - count) * in_block + 2 * float(RAMP[: len(entries)] @ entries)
    return weighted / (count * nonzero(total))


@metric(
    definition="(sqrt N - L1 / L2) / (sqrt N - 1); one-hot 1, constant 0",
    source="Hoyer 2004 (JMLR 5)",
    types="AWG",
    default=True,
)
def hoyer(x: Matrix) -> float:
    """Computes sparseness from the ratio of the norms L1 and L2 of the entries."""
    count = x.n * x.p
    if count < 2:
        raise Undefined("n_too_small")
    length = nonzero(float(np.sqrt(x.energy)))
    total = float(np.sum(x.magnitudes, dtype=np.float64))
    return (np.sqrt(count) - total / length) / (np.sqrt(count) - 1)


@metric(
    definition="share of |x| <= threshold * rms(x)",
    source="Hurley & Rickard 2009, arXiv 0811.4706 (l0_eps)",
    types="AWG",
)
def near_zero_fraction(x: Matrix, *, threshold: float = 0.01) -> float:
    """Computes the share of entries that are small beside the root mean square."""
    require(threshold >= 0, "near_zero_fraction", "threshold", threshold, "at least 0, in root mean squares")
    rms = nonzero(float(np.sqrt(x.energy)) / np.sqrt(x.n * x.p))
    return float(np.searchsorted(x.magnitudes, threshold * rms, side="right")) / (x.n * x.p)


@metric(
    definition="E[m^2] / E[m]^2, m_j the mean square of feature j",
    source="He et al. 2024, arXiv 2405.19279",
    types="A",
)
def outlier_kurtosis(x: Matrix) -> float:
    """Computes a kurtosis: 1 where all features are equally strong, p where one feature has everything."""
    power = _feature_power(x)
    return float(np.mean(power**2) / np.mean(power) ** 2)


@metric(definition="max |x| / median |x|", source="Sun et al. 2024, arXiv 2402.17762", types="A")
def massive_activation(x: Matrix) -> float:
    """Computes the largest entry beside the median one."""
    return float(x.magnitudes[-1]) / nonzero(float(np.median(x.magnitudes)))


@metric(
    definition="share of features with rms <= threshold * rms(x)", source="Lu et al. 2019, arXiv 1903.06733", types="A"
)
def dead_units(x: Matrix, *, threshold: float = 1e-6) -> float:
    """Computes the share of features that are silent on every row."""
    require(threshold >= 0, "dead_units", "threshold", threshold, "at least 0, in root mean squares")
    power = _feature_power(x)
    return float(np.mean(power <= threshold**2 * np.mean(power)))


def _feature_power(x: Matrix) -> Array:
    """Computes the mean square of each feature, (p,), on the scale of `unit`."""
    power = np.mean(x.unit_values() ** 2, axis=0)
    if not power.any():
        raise Undefined("zero")
    return power
