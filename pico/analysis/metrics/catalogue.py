"""All metrics of states of this project: importing this module registers them. What to import for use in Python."""

from pico.analysis.metrics import dynamics, gradient_noise, powerlaw, similarity, sparsity, spectra
from pico.analysis.metrics.matrix import Matrix
from pico.analysis.metrics.registry import METRICS, STATES, Measurement, compute, metrics_of
from pico.analysis.metrics.similarity import independence_null

__all__ = ["METRICS", "STATES", "Matrix", "Measurement", "compute", "independence_null", "metrics_of"]

_REGISTERED = (dynamics, gradient_noise, powerlaw, similarity, sparsity, spectra)
