"""Held-out sets: which documents are kept out of training, and the rows that are scored."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pico.data.packing import WRITE, cut, row_group_rows, rows_array


def held_out(ids: Sequence[str], fraction: float) -> np.ndarray:
    """Which documents of ONE domain are held out: bool, by document.

    A document's hash (its id: sha256 of its text, in hex) decides, so a document stays on its side when others come or
    go, and a copy of it cannot be on the other. Where no hash falls in the held-out share, the lowest does.
    """
    heldout = np.array([is_low(identity, fraction) for identity in ids], dtype=bool)
    if len(heldout) and not heldout.any():
        heldout[min(range(len(ids)), key=ids.__getitem__)] = True
    return heldout


def is_low(identity: str, fraction: float) -> bool:
    """Whether a hash, read as a number in [0, 1), is below `fraction`."""
    return int(identity[:13], 16) < fraction * 2**52  # 13 hex digits: exact in a double


def heldout_sample(tokens: np.ndarray, row_len: int, limit: int) -> np.ndarray:
    """At most `limit` rows, (rows, row_len), spread evenly over the held-out tokens of a domain, in their order.

    Evenly, because the first rows alone would be of a single document where documents are long.
    """
    rows = cut(tokens, row_len)
    if len(rows) <= limit:
        return rows
    return rows[np.arange(limit) * len(rows) // limit]


def target_bytes(rows: np.ndarray, bytes_of_token: np.ndarray) -> np.ndarray:
    """UTF-8 bytes of the targets (all but the first id) of each row: int64, (rows,)."""
    return bytes_of_token[rows[:, 1:]].sum(axis=1, dtype=np.int64)


def write_heldout(path: Path, rows: np.ndarray, n_bytes: np.ndarray) -> None:
    """Writes `heldout/<domain>.parquet`: `input_ids` and `n_bytes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"input_ids": rows_array(rows), "n_bytes": pa.array(n_bytes, pa.int64())})
    pq.write_table(table, path, row_group_size=row_group_rows(rows.shape[1]), **WRITE)
