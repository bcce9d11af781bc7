"""Analysis: what changes inside a model while it learns. `compute` gives one metric, `read_table` a run's table."""

from pathlib import Path
from typing import TYPE_CHECKING

from pico.analysis.metrics import (
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
from pico.analysis.metrics.matrix import Matrix
from pico.analysis.metrics.registry import METRICS, Measurement, compute
from pico.analysis.metrics.similarity import independence_null

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
    """Returns all rows of an analysed model (`data/analysis/MODEL/`), by step. Columns: pico.analysis.engine.table."""
    # Imported here, so that workers, which write no tables, need no pyarrow.
    from pico.analysis.engine.table import read_table as read

    return read(folder)
