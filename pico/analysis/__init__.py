"""Analysis: what changes inside a model while it learns. `compute` gives one metric, `read_table` a run's table."""

from pathlib import Path
from typing import TYPE_CHECKING

from pico.analysis import (
    canonical,
    dynamics,
    features,
    gradient_noise,
    kernels,
    powerlaw,
    similarity,
    sparsity,
    spectra,
)
from pico.analysis.matrix import Matrix
from pico.analysis.registry import METRICS, Measurement, compute
from pico.analysis.similarity import independence_null

if TYPE_CHECKING:
    import pyarrow

__all__ = ["METRICS", "Matrix", "Measurement", "compute", "independence_null", "read_table"]

_REGISTERED = (
    kernels,
    canonical,
    similarity,
    spectra,
    powerlaw,
    features,
    sparsity,
    dynamics,
    gradient_noise,
)  # importing them fills METRICS


def read_table(folder: Path) -> "pyarrow.Table":
    """All rows of an analysed model (`data/analysis/MODEL/`), by step; see pico.analysis.table for the columns."""
    from pico.analysis.table import read_table as read  # here, so that workers, which write no tables, need no pyarrow

    return read(folder)
