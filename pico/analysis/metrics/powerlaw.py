"""Heavy tails: the power law that the largest squared singular values follow (heavy-tailed self-regularisation)."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from pico.analysis.metrics.matrix import Array, Matrix
from pico.analysis.metrics.registry import Undefined, require
from pico.analysis.metrics.spectra import nonzero_spectrum, spectral_metric

SOURCE = "Clauset et al. 2009, arXiv 0706.1062; Martin & Mahoney 2021, arXiv 1810.01075"
tail_metric = partial(spectral_metric, source=SOURCE)

LEAST_SPREAD = 1e-4
"""The least spread of ln l within a tail: rounding equal values to float32 gives less, for sides of up to 10,000."""


@dataclass(frozen=True)
class PowerLaw:
    """A tail of density proportional to l^-alpha from l = xmin on, fitted by maximum likelihood."""

    alpha: float
    log_xmin: float
    """ln xmin."""
    distance: float
    """D of Kolmogorov and Smirnov: the largest difference between the two distribution functions of the tail."""
    k: int
    """Values of the tail."""


def fit_power_law(logs: Array, log_xmin: float | None = None) -> PowerLaw | None:
    """Fits logs = ln l, (values,) in any order, from `log_xmin` on, or from the one of the values that makes D least.

    In logarithms because l = s^2 of an extreme matrix overflows. None where no tail has two values that differ by more
    than LEAST_SPREAD.
    """
    logs = np.sort(logs)
    if log_xmin is not None:
        return _fit(logs[logs >= log_xmin], log_xmin)
    fits = (_fit(logs[start:], float(logs[start])) for start in np.unique(logs, return_index=True)[1])
    return min((one for one in fits if one is not None), key=lambda one: one.distance, default=None)


def _fit(tail: Array, log_xmin: float) -> PowerLaw | None:
    """Fits a whole tail: ascending, all at least log_xmin."""
    k = len(tail)
    if k < 2 or tail[-1] - tail[0] <= LEAST_SPREAD:
        return None
    excess = tail - log_xmin
    slope = k / float(excess.sum())  # alpha - 1; the excess of a Pareto tail is exponential
    model = -np.expm1(-slope * excess)
    steps = np.arange(k + 1) / k
    distance = max(float(np.max(steps[1:] - model)), float(np.max(model - steps[:-1])))
    return PowerLaw(1 + slope, log_xmin, distance, k)


def _tail(name: str, x: Matrix, xmin: float | None) -> tuple[PowerLaw, str]:
    """Fits l = s^2 over the numerical rank; the status is rank_deficient where that is not full."""
    require(xmin is None or xmin > 0, name, "xmin", xmin, "more than 0, or null to choose it by its fit")
    spectrum = nonzero_spectrum(x)
    if x.rank < 2:
        raise Undefined("n_too_small")
    logs = 2 * (np.log(spectrum[: x.rank]) + x.exponent * np.log(2))
    found = fit_power_law(logs, None if xmin is None else float(np.log(xmin)))
    if found is None:
        raise Undefined("zero" if xmin is None else "n_too_small")
    return found, "ok" if x.rank == x.largest_rank else "rank_deficient"


@tail_metric(
    definition="1 + k / sum ln(l / xmin) over the k values l >= xmin, l = s^2; xmin is the l that makes D (powerlaw_d) "
    "least, if not given; zero where all l are equal",
)
def powerlaw_alpha(x: Matrix, *, xmin: float | None = None) -> tuple[float, str]:
    """Computes the exponent of the spectrum's tail: small where a few directions dominate.

    Read it with powerlaw_d and _k.
    """
    found, status = _tail("powerlaw_alpha", x, xmin)
    return found.alpha, status


@tail_metric(
    definition="Kolmogorov-Smirnov distance D between the tail of powerlaw_alpha and its fit, max |S(l) - P(l)|"
)
def powerlaw_d(x: Matrix, *, xmin: float | None = None) -> tuple[float, str]:
    """Computes the distance of the tail from a power law: 0 where it is one exactly."""
    found, status = _tail("powerlaw_d", x, xmin)
    return found.distance, status


@tail_metric(definition="k, the number of values l >= xmin in powerlaw_alpha")
def powerlaw_k(x: Matrix, *, xmin: float | None = None) -> tuple[float, str]:
    """Counts the values that the fit rests on; the standard error of alpha is about (alpha - 1) / sqrt k."""
    found, status = _tail("powerlaw_k", x, xmin)
    return float(found.k), status
