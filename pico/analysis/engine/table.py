"""The table of measurements: one Parquet file a checkpoint, one row a value; its key is every column but the value.

| column | meaning |
|---|---|
| run, step, tokens | the model, and how far its training was |
| metric, params | the metric; canonical JSON of its settings and, for components of one module, that module |
| target_step | the checkpoint compared with; null for metrics of one tensor |
| target_run, target_layer | the run and the layer compared with, where they are others; null for the same |
| component, data_type, layer, head, split | what was measured; layer -1: embeddings; null: all heads; weights |
| value, status | float64; null where the metric is not defined, and status says why; see Measurement |
| n, p, rank | shape and rank; see Measurement |
| input_dtype | the type in which the data were stored |
"""

import io
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pico.analysis.metrics.registry import Measurement
from pico.checkpoint import step_name
from pico.errors import PicoError
from pico.files import write_atomic

Row = dict[str, Any]
"""One value with everything that says what it is of: the columns of the table."""

SCHEMA = pa.schema([
    pa.field("run", pa.string(), nullable=False),
    pa.field("step", pa.int64(), nullable=False),
    pa.field("tokens", pa.int64(), nullable=False),
    pa.field("metric", pa.string(), nullable=False),
    pa.field("params", pa.string(), nullable=False),
    pa.field("target_step", pa.int64()),
    pa.field("target_run", pa.string()),
    pa.field("target_layer", pa.int64()),
    pa.field("component", pa.string(), nullable=False),
    pa.field("data_type", pa.string(), nullable=False),
    pa.field("layer", pa.int64(), nullable=False),
    pa.field("head", pa.int64()),
    pa.field("split", pa.string()),
    pa.field("value", pa.float64()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("n", pa.int64(), nullable=False),
    pa.field("p", pa.int64(), nullable=False),
    pa.field("rank", pa.int64()),
    pa.field("input_dtype", pa.string(), nullable=False),
])  # fmt: skip

IDENTITY = (
    "run", "step", "metric", "params", "target_step", "target_run", "target_layer", "component", "data_type", "layer",
    "head", "split",
)  # fmt: skip
"""The columns that tell two measurements apart; the other columns of the key follow from these."""


def make_row(found: Measurement, **cells: Any) -> Row:
    """Returns the row of a measurement; columns that are not given are null."""
    return dict.fromkeys(SCHEMA.names) | vars(found) | cells


def file_name(step: int) -> str:
    """Returns the file of one checkpoint."""
    return f"{step_name(step)}.parquet"


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """Writes one checkpoint's rows whole or not at all, sorted by identity: equal rows give equal bytes.

    Raises ValueError where two rows have the same identity: a component or a metric forgot to say what sets them apart.
    """
    ordered = sorted(rows, key=_order)
    for one, other in pairwise(ordered):
        if _order(one) == _order(other):
            raise ValueError(f"two measurements have one key: { {name: one[name] for name in IDENTITY} }")
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(ordered, schema=SCHEMA)
    pq.write_table(table, buffer, compression="zstd", compression_level=3, version="2.6", data_page_version="1.0")
    write_atomic(path, buffer.getvalue())


def _order(row: Row) -> tuple:
    """Returns the identity, with null before any value."""
    return tuple((row[name] is not None, row[name] if row[name] is not None else 0) for name in IDENTITY)


def read_table(folder: Path) -> pa.Table:
    """Returns all rows of an analysed model, by step. Raises PicoError where there are none, or a file is torn."""
    paths = sorted(Path(folder).glob("step_*.parquet"))
    if not paths:
        raise PicoError(f"{folder} holds no analysed checkpoints", mend="run: dvc repro")
    tables = []
    for path in paths:
        try:
            tables.append(pq.read_table(path, schema=SCHEMA))
        except (pa.ArrowException, OSError) as error:
            raise PicoError(f"{path} cannot be read: {error}", mend="delete it and run: dvc repro") from error
    return pa.concat_tables(tables)
