"""Metrics of features' spectra that were made to foretell how useful a representation is, without labels."""

import numpy as np
from scipy.special import xlogy

from pico.analysis.metrics.kernels import require_variation
from pico.analysis.metrics.limits import require
from pico.analysis.metrics.matrix import EPS32, Matrix, singular_values
from pico.analysis.metrics.registry import Undefined, metric
from pico.analysis.metrics.spectra import nonzero_spectrum


@metric(
    definition="exp(-sum p_i ln p_i), p_i = s_i / sum s + eps, over the min(n, p) singular values of X, not centred",
    source="Garrido et al. 2023, arXiv 2210.02885",
    types="A",
    spectral=True,
)
def rankme(x: Matrix, *, eps: float = 1e-7) -> float:
    """RankMe: the effective rank with the paper's eps, that of float32; so it may pass min(n, p) by a hair."""
    require(eps >= 0, "rankme", "eps", eps, "at least 0")
    spectrum = nonzero_spectrum(x)
    share = spectrum / spectrum.sum() + eps
    missing = min(x.n, x.p) - len(spectrum)  # values that are 0 because X is a product of narrow factors
    return float(np.exp(-xlogy(share, share).sum() - missing * xlogy(eps, eps)))


@metric(
    definition="slope of -ln l_i on ln i, weighted by 1 / i, i from `first` to `last`; l_i the eigenvalues of the "
    "covariance, descending, those over rounding only; columns centred",
    source="Agrawal et al. 2022 (NeurIPS 35), with their code's range and weights; Stringer et al. 2019 (Nature 571)",
    types="A",
    min_rows=3,
)
def alpha_req(x: Matrix, *, first: int = 4, last: int = 100) -> float:
    """alpha-ReQ: how fast the eigenvalues decay, l_i ~ i^-alpha; about 1 is said to be best."""
    require(1 <= first < last, "alpha_req", "first, last", (first, last), "ranks from 1, the first before the last")
    require_variation(x)
    spectrum = singular_values(x.centred)
    # what rounding every entry once to float32 can fake, as in Matrix.rank
    rank = int((spectrum > 4 * np.sqrt(max(x.n, x.p)) * EPS32 * spectrum[0]).sum())
    ranks = np.arange(first, min(last, rank) + 1)
    if len(ranks) < 2:
        raise Undefined("n_too_small")
    slope, _ = np.polyfit(np.log(ranks), 2 * np.log(spectrum[ranks - 1]), 1, w=ranks**-0.5)  # polyfit squares them
    return float(-slope)
