"""Metrics that are tested alike, and data to test them on."""

import numpy as np

from pico.analysis.metrics.catalogue import METRICS, compute

CATALOGUE = [
    "linear_cka", "debiased_cka", "minibatch_cka", "rbf_cka", "cca_mean", "svcca", "pwcca", "procrustes", "rsa",
    "mutual_knn", "effective_rank", "per", "per_min_dim", "rankme", "alpha_req", "stable_rank", "participation_ratio",
    "condition_number", "spectral_norm", "nuclear_norm", "frobenius_norm", "max_abs", "inf_operator_norm",
    "powerlaw_alpha", "powerlaw_d", "powerlaw_k", "mp_excess", "gini", "hoyer", "near_zero_fraction",
    "outlier_kurtosis", "massive_activation", "dead_units",
]  # fmt: skip
"""The metrics of single tensors and of representations; those of training, landscape and behaviour have own tests."""

MOVEMENT = ["relative_change", "distance_from_initialization"]
SINGLE = [name for name in CATALOGUE if METRICS[name].target is None]
REPRESENTATIONS = [name for name in CATALOGUE if METRICS[name].target is not None]
LENGTHS = ["spectral_norm", "nuclear_norm", "frobenius_norm", "max_abs", "inf_operator_norm"]
SCALE_FREE = [name for name in SINGLE if name not in LENGTHS]
SPECTRAL = [name for name in SINGLE if METRICS[name].spectral]
# sums over the entries, or over the features, depend on the basis; so do the weights of PWCCA
BASIS_FREE = [*SPECTRAL, "alpha_req", "frobenius_norm"]
# What an offset, a scale, a rotation of X, or an exchange of X and Y changes, if anything. Rounding near a threshold
# moves whole samples or dimensions in or out of mutual_knn and svcca, so those are tested where none lies near one.
ORDERED = ["minibatch_cka"]  # its batches are of successive rows, though one batch is not
DIRECTIONAL = ["pwcca"]
RANGES = {"procrustes": (0, 2), "debiased_cka": (-1, 1), "minibatch_cka": (-1, 1), "rsa": (-1, 1)}


def gaussian(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def rotation(seed: int, size: int) -> np.ndarray:
    return np.linalg.qr(gaussian(seed, size, size))[0]


def value(name: str, *tensors: object, **parameters: object) -> float:
    found = compute(name, *tensors, **parameters)
    assert found.value is not None, found
    return found.value
