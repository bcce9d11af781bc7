"""Packing: documents shuffled and joined, cut into rows of seq_len + 1 ids, rows shuffled, Parquet shards.

The layout is that of the published pre-tokenized data set: column `input_ids`, shards `train-00000-of-000NN.parquet`.
"""

from collections.abc import Callable
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


def row_group_rows(row_len: int) -> int:
    """Rows of a Parquet row group, the unit that the loader decodes: about half a megabyte whatever the row length."""
    return max(1, 2**17 // row_len)


def shuffled(n: int, seed: int, purpose: int) -> np.ndarray:
    """A permutation of 0 to n - 1: a pure function of its arguments. `purpose` keeps the shuffles independent."""
    return np.random.Generator(np.random.PCG64([seed % 2**64, purpose])).permutation(n)


def join(tokens: np.ndarray, lengths: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The documents of `tokens` (int32, one after another, `lengths` ids each) in another order; int32."""
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(lengths) else np.zeros(0, np.int64)
    joined = np.empty(int(lengths[order].sum()), np.int32)
    end = 0
    for start, length in zip(starts[order].tolist(), lengths[order].tolist(), strict=True):
        joined[end : end + length] = tokens[start : start + length]
        end += length
    return joined


def cut(tokens: np.ndarray, row_len: int) -> np.ndarray:
    """The whole rows in `tokens`: (rows, row_len), a view. What is left over is less than one row."""
    rows = len(tokens) // row_len
    return tokens[: rows * row_len].reshape(rows, row_len)


def pack(tokens: np.ndarray, lengths: np.ndarray, *, seq_len: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training rows in training order, (rows, seq_len + 1) int32, and the tail ids that fill no row.

    `tokens`: the documents one after another, each with its EOS; `lengths`: ids of each, EOS counted. Documents are
    shuffled and joined across domains, rows are cut, and rows are shuffled: each a pure function of `seed`.
    """
    joined = join(tokens, lengths, shuffled(len(lengths), seed, 0))
    rows = cut(joined, seq_len + 1)
    return rows[shuffled(len(rows), seed, 1)], joined[rows.size :]


def write_shards(
    rows: np.ndarray, folder: Path, rows_per_shard: int, progress: Callable[[float], None] = lambda fraction: None
) -> list[Path]:
    """Writes `train-00000-of-000NN.parquet` and so on; gives the paths in order."""
    folder.mkdir(parents=True, exist_ok=True)
    count = -(-len(rows) // rows_per_shard)
    paths = []
    for shard in range(count):
        path = folder / f"train-{shard:05d}-of-{count:05d}.parquet"
        part = rows[shard * rows_per_shard : (shard + 1) * rows_per_shard]
        table = pa.table({"input_ids": rows_array(part)})
        pq.write_table(table, path, row_group_size=row_group_rows(rows.shape[1]), **WRITE)
        paths.append(path)
        progress((shard + 1) / count)
    return paths


def rows_array(rows: np.ndarray) -> pa.ListArray:
    """Rows as an Arrow list<int32> array."""
    offsets = np.arange(len(rows) + 1, dtype=np.int64) * rows.shape[1]
    values = pa.array(np.ascontiguousarray(rows, dtype=np.int32).reshape(-1))
    if offsets[-1] >= 2**31:
        raise ValueError(
            f"a shard of {offsets[-1]} ids does not fit a list<int32> column: lower packing.rows_per_shard"
        )
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)
