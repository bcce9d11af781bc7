"""Metrics of one matrix's singular values and norms, and of features' spectra that foretell how useful they are.

One spectrum per matrix feeds them all; see `Matrix.spectrum`.
"""

from functools import partial

import numpy as np
from scipy.special import xlogy

from pico.analysis.metrics.matrix import EPS32, Array, Matrix, singular_values
from pico.analysis.metrics.registry import Undefined, metric, nonzero, require, require_variation

spectral_metric = partial(metric, types="AWG", spectral=True)


def nonzero_spectrum(x: Matrix) -> Array:
    """Returns the singular values of `x.unit`, descending. Raises Undefined("zero") where all are 0."""
    nonzero(x.spectrum[0])
    return x.spectrum


@spectral_metric(definition="exp(-sum p ln p), p = s / sum s", source="Roy & Vetterli 2007 (EUSIPCO)", default=True)
def effective_rank(x: Matrix) -> float:
    """Computes the number of equal singular values that would have the same entropy."""
    spectrum = nonzero_spectrum(x)
    share = spectrum / spectrum.sum()
    return float(np.exp(-xlogy(share, share).sum()))  # xlogy: 0 ln 0 = 0


@spectral_metric(
    definition="effective rank / structural rank (min(n, p), or fewer where the factors allow fewer)",
    source="Diehl Martinez et al. 2024, arXiv 2410.11451",
    default=True,
)
def per(x: Matrix) -> float:
    """Computes proportional effective rank: 1 where all directions that are possible are equally strong."""
    return effective_rank(x) / x.largest_rank


@spectral_metric(
    definition="effective rank / min(n, p), also where the matrix is a product that cannot have that rank",
    source="Diehl Martinez et al. 2024, arXiv 2410.11451",
)
def per_min_dim(x: Matrix) -> float:
    """Computes effective rank over the smaller side, as published; `per` is over the structural rank."""
    return effective_rank(x) / min(x.n, x.p)


@spectral_metric(definition="|X|_F^2 / s_1^2", source="Rudelson & Vershynin 2007, arXiv math/0503442", default=True)
def stable_rank(x: Matrix) -> float:
    """Computes a rank that tiny singular values do not change."""
    spectrum = nonzero_spectrum(x)
    return float(np.sum((spectrum / spectrum[0]) ** 2))


@spectral_metric(definition="(sum l)^2 / sum l^2, l = s^2", source="Gao et al. 2017, bioRxiv 214262")
def participation_ratio(x: Matrix) -> float:
    """Computes the number of directions among which variance is shared."""
    power = (nonzero_spectrum(x) / x.spectrum[0]) ** 2
    return float(power.sum() ** 2 / np.sum(power**2))


@spectral_metric(definition="s_1 / s_r over the numerical rank r", source="Golub & Van Loan 2013", default=True)
def condition_number(x: Matrix) -> tuple[float, str]:
    """Divides the largest by the smallest singular value over rounding; where some are, `rank_deficient`."""
    spectrum = nonzero_spectrum(x)
    return float(spectrum[0] / spectrum[x.rank - 1]), "ok" if x.rank == x.largest_rank else "rank_deficient"


def marchenko_pastur_edge(n: int, p: int) -> float:
    """Returns the share of sum l at which the spectrum of n x p independent entries ends: (1/sqrt n + 1/sqrt p)^2.

    That is the edge sigma^2 (sqrt n + sqrt p)^2 with the entries' variance sigma^2 estimated as their mean square,
    sum l / (n p). Source: Marchenko & Pastur 1967.
    """
    return (n**-0.5 + p**-0.5) ** 2


@spectral_metric(
    definition="sum of l over the Marchenko-Pastur edge v (sqrt n + sqrt p)^2 / sum l; l = s^2, v = |X|_F^2 / (n p) "
    "the entries' mean square; Gaussian about 0 (l_1 may pass the edge by its own small fluctuation)",
    source="Marchenko & Pastur 1967; Martin & Mahoney 2021, arXiv 1810.01075",
)
def mp_excess(x: Matrix) -> float:
    """Computes the share of energy in directions stronger than independent entries of its variance would give."""
    energy = (nonzero_spectrum(x) / x.spectrum[0]) ** 2
    over = energy > marchenko_pastur_edge(x.n, x.p) * energy.sum() * (1 + 1e-9)  # not by rounding alone
    return float(energy[over].sum() / energy.sum())


@spectral_metric(definition="s_1", source="Golub & Van Loan 2013", default=True)
def spectral_norm(x: Matrix) -> float:
    """Computes the largest singular value."""
    return x.scaled(x.spectrum[0])


@spectral_metric(definition="sum s", source="Golub & Van Loan 2013")
def nuclear_norm(x: Matrix) -> float:
    """Computes the sum of the singular values."""
    return x.scaled(x.spectrum.sum())


@metric(definition="sqrt(sum x_ij^2)", source="Golub & Van Loan 2013", types="AWG", default=True)
def frobenius_norm(x: Matrix) -> float:
    """Computes the length of the matrix as one long vector."""
    return x.scaled(float(np.sqrt(x.energy)))


@metric(definition="max |x_ij|", source="Golub & Van Loan 2013", types="AWG")
def max_abs(x: Matrix) -> float:
    """Computes the largest entry."""
    return float(np.max(np.abs(x.values)))


@metric(definition="max_i sum_j |x_ij|", source="Golub & Van Loan 2013", types="AWG")
def inf_operator_norm(x: Matrix) -> float:
    """Computes the operator norm from l_inf to l_inf: the largest absolute row sum."""
    return float(np.max(np.sum(np.abs(x.values), axis=1)))


@metric(
    definition="exp(-sum p_i ln p_i), p_i = s_i / sum s + eps, over the min(n, p) singular values of X, not centred",
    source="Garrido et al. 2023, arXiv 2210.02885",
    types="A",
    spectral=True,
)
def rankme(x: Matrix, *, eps: float = 1e-7) -> float:
    """Computes effective rank with the paper's eps, that of float32; so it may pass min(n, p) by a hair."""
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
    """Computes the decay of the eigenvalues, l_i ~ i^-alpha; about 1 is said to be best."""
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
