"""Packing: documents shuffled and joined, cut into rows of seq_len + 1 ids, rows shuffled, Parquet shards.

The layout is that of the published pre-tokenized data set: column `input_ids`, shards `train-00000-of-000NN.parquet`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WRITE: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": False,  # ids are many and spread: zstd alone is smaller, and faster to read
    "write_statistics": False,
    "store_schema": False,
}
"""Options that make equal tables equal bytes."""


PART = 16
"""Row groups that are turned into Arrow's int32, and compressed, at a time: 8 MB."""


def shard_name(number: int, count: int) -> str:
    """`train-00000-of-00003.parquet`"""
    return f"train-{number:05d}-of-{count:05d}.parquet"


def row_group_rows(row_len: int) -> int:
    """Rows of a Parquet row group, the unit that the loader decodes: about half a megabyte whatever the row length."""
    return max(1, 2**17 // row_len)


def shuffled(n: int, seed: int, purpose: int) -> np.ndarray:
    """A permutation of 0 to n - 1: a pure function of its arguments. `purpose` keeps the shuffles independent."""
    return np.random.Generator(np.random.PCG64([seed % 2**64, purpose])).permutation(n)


def segments(starts: np.ndarray, lengths: np.ndarray, row_len: int) -> tuple[np.ndarray, ...]:
    """How documents joined into one stream of ids are cut by rows of `row_len`.

    `starts`: where each document begins in the stream; `lengths`: its ids, EOS counted. Gives five int64 arrays, one
    entry a segment, in the order of the stream: which document; its row; its place in the row; where in the document it
    begins; its length. The segments of a row fill it without gaps, but for the last row.
    """
    first, last = starts // row_len, (starts + lengths - 1) // row_len
    counts = last - first + 1
    document = np.repeat(np.arange(len(starts)), counts)
    row = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts) + first[document]
    begin = np.maximum(starts[document], row * row_len)
    end = np.minimum((starts + lengths)[document], (row + 1) * row_len)
    return document, row, begin - row * row_len, begin - starts[document], end - begin


def write_rows(path: Path, rows: np.ndarray) -> None:
    """Writes rows, integers (n, seq_len + 1), as one shard: column `input_ids`, int32."""
    schema = pa.schema([("input_ids", pa.list_(pa.int32()))])
    with pq.ParquetWriter(path, schema, **WRITE) as writer:
        for part in parts_of(rows):
            writer.write_table(pa.table({"input_ids": rows_array(part)}), row_group_size=row_group_rows(rows.shape[1]))


def parts_of(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows, PART row groups at a time; no rows are one part."""
    size = PART * row_group_rows(rows.shape[1])
    for first in range(0, max(1, len(rows)), size):
        yield rows[first : first + size]


def rows_array(rows: np.ndarray) -> pa.ListArray:
    """Rows as an Arrow list<int32> array."""
    offsets = np.arange(len(rows) + 1, dtype=np.int64) * rows.shape[1]
    values = pa.array(np.ascontiguousarray(rows, dtype=np.int32).reshape(-1))
    if offsets[-1] >= 2**31:
        raise ValueError(
            f"a shard of {offsets[-1]} ids does not fit a list<int32> column: lower packing.rows_per_shard"
        )
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)
