"""Held-out sets: which documents are kept out of training, and which rows are scored."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pico.data.tokens.packing import WRITE, row_group_rows, rows_array


def low_hashes(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Which hashes (the first eight bytes, uint64), read as numbers in [0, 1), are below `fraction`: bool.

    A document's hash (its id: sha256 of its text) decides whether it is held out, so a document stays on its side when
    others come or go, and a copy of it cannot be on the other.
    """
    return (hashes >> np.uint64(12)) < fraction * 2**52  # 52 bits: exact in a double


def is_low(identity: str, fraction: float) -> bool:
    """Whether a hash in hex, read as a number in [0, 1), is below `fraction`."""
    return int(identity[:13], 16) < fraction * 2**52  # 13 hex digits: exact in a double


def spread_evenly(rows: int, limit: int) -> np.ndarray:
    """The numbers of at most `limit` of `rows` rows, evenly spread: int64, ascending.

    Evenly, because the first rows alone would be of a single document where documents are long.
    """
    return np.arange(rows) if rows <= limit else np.arange(limit) * rows // limit


def target_bytes(rows: np.ndarray, bytes_of_token: np.ndarray) -> np.ndarray:
    """UTF-8 bytes of the targets (all but the first id) of each row: int64, (rows,)."""
    return bytes_of_token[rows[:, 1:]].sum(axis=1, dtype=np.int64)


def write_heldout(path: Path, rows: np.ndarray, n_bytes: np.ndarray) -> None:
    """Writes `heldout/<domain>.parquet` or `tinsy/<domain>.parquet`: `input_ids` and `n_bytes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"input_ids": rows_array(rows), "n_bytes": pa.array(n_bytes, pa.int64())})
    pq.write_table(table, path, row_group_size=row_group_rows(rows.shape[1]), **WRITE)
