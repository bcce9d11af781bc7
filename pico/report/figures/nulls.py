"""What a comparison gives for data that have nothing to do with each other: the level drawn into pictures of it."""

from functools import lru_cache

from pico.analysis.metrics.catalogue import STATES, independence_null, metrics_of
from pico.errors import PicoError

DRAWS = 5
SAMPLED = 2**20
"""Entries of a matrix up to which the null is sampled; of larger ones, only those are drawn that have a closed form."""


@lru_cache(maxsize=1024)
def null_level(metric: str, n: int, p: int) -> float | None:
    """The metric's mean for independent Gaussian data of n rows and p columns.

    None where it compares nothing, and where it would have to be sampled at too great a cost. Closed forms:
    linear CKA p / (n + p); the debiased estimators 0; mutual kNN k / (n - 1). A test holds them to the sampled ones.
    """
    known = metrics_of(STATES).get(metric)
    if known is None or known.target is None or known.elementwise or "activations" not in known.data_types:
        return None
    if metric == "linear_cka":
        return p / (n + p)
    if metric in ("debiased_cka", "minibatch_cka"):
        return 0.0
    if metric == "mutual_knn":
        return known.parameters["k"] / (n - 1)
    if n * max(n, p) > SAMPLED:
        return None
    try:
        return float(independence_null(metric, n, p, draws=DRAWS).mean())
    except PicoError:  # the metric itself refuses data of this shape
        return None
