"""Reads token shards: rows by number, the rows of a step's batch, the held-out rows. Small in memory at any size."""

from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pico.errors import PicoError

MEND = "make the tokens again: dvc repro prepare"


class TokenRows:
    """The rows of a folder of Parquet shards, in the order of the shards' names.

    A row is decoded with the row group that holds it (half a megabyte in our shards); row groups are kept until they
    come to `cache_bytes`, oldest use first out. So a corpus of that size is decoded once, a larger one that is read in
    order once an epoch, and memory stays bounded. Works on the published `pretokenized-dolma` shards too.
    """

    def __init__(self, folder: Path, *, cache_bytes: int = 256 * 2**20) -> None:
        self.folder = Path(folder)
        self._paths = sorted(self.folder.glob("*.parquet"))
        if not self._paths:
            raise PicoError(f"{self.folder} holds no token shards", mend=MEND)
        self._files = [_open(path) for path in self._paths]
        self._groups = [
            (file, group) for file, opened in enumerate(self._files) for group in range(opened.num_row_groups)
        ]
        sizes = [self._files[file].metadata.row_group(group).num_rows for file, group in self._groups]
        self._ends = np.cumsum(np.asarray(sizes, np.int64))
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._cache_bytes, self._cached = cache_bytes, 0
        self.n_rows = int(self._ends[-1]) if len(sizes) else 0
        """Rows in all shards."""
        if not self.n_rows:
            raise PicoError(f"the token shards in {self.folder} hold no rows", mend=MEND)
        self.row_len = self._group(0).shape[1]
        """Ids in a row: seq_len + 1."""

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Returns the rows of these numbers (0 to n_rows - 1), in the order asked: int32, (len(indices), row_len)."""
        indices = np.asarray(indices, np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= self.n_rows):
            raise IndexError(f"rows {indices.min()} to {indices.max()} asked of {self.n_rows} in {self.folder}")
        found = np.empty((len(indices), self.row_len), np.int32)
        groups = np.searchsorted(self._ends, indices, side="right")
        for group in np.unique(groups):
            rows = self._group(int(group))
            here = groups == group
            found[here] = rows[indices[here] - (self._ends[group] - len(rows))]
        return found

    def _group(self, group: int) -> np.ndarray:
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        file, within = self._groups[group]
        path = self._paths[file]
        table = self._files[file].read_row_group(within, columns=["input_ids"], use_threads=False)
        rows = as_rows(table["input_ids"], path)
        if self._cache and rows.shape[1] != self.row_len:
            raise PicoError(f"{path} has rows of {rows.shape[1]} ids, the first shard of {self.row_len}", mend=MEND)
        self._cache[group] = rows
        self._cached += rows.nbytes
        while self._cached > self._cache_bytes and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].nbytes
        return rows


def batch_indices(step: int, batch_size: int, n_rows: int, seed: int) -> np.ndarray:
    """Returns the row numbers of the global batch of step `step` (from 0): int64, (batch_size,). A pure function.

    Rows are taken one after another: the first epoch in the order of the shards, which are shuffled already, each later
    one in a fresh permutation that follows from (seed, epoch). A batch may straddle epochs.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs, offsets = np.divmod(positions, n_rows)
    indices = offsets.copy()
    for epoch in np.unique(epochs):
        if epoch > 0:
            here = epochs == epoch
            indices[here] = _epoch_order(int(epoch), n_rows, seed)[offsets[here]]
    return indices


@lru_cache(maxsize=2)
def _epoch_order(epoch: int, n_rows: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed % 2**64, epoch])).permutation(n_rows)


def heldout_rows(tokens: Path, part: str = "heldout") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads the held-out rows below `data/tokens/`, by domain in alphabetical order; `part` "tinsy": a fixed few.

    Each: `input_ids` int32 (rows, row_len), and `n_bytes` int64 (rows,), the UTF-8 bytes of the row's targets.
    """
    paths = sorted((Path(tokens) / part).glob("*.parquet"))
    if not paths:
        raise PicoError(f"{Path(tokens) / part} holds no held-out rows", mend=MEND)
    found = {}
    for path in paths:
        table = _open(path, columns=["input_ids", "n_bytes"]).read(use_threads=False)
        rows = as_rows(table["input_ids"], path)
        found[path.stem] = rows, table["n_bytes"].to_numpy().astype(np.int64)
    return found


def as_rows(column: pa.ChunkedArray, path: Path) -> np.ndarray:
    """Returns a list<int> column of lists of one length as an int32 array (rows, length)."""
    lists = column.combine_chunks()
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    values = lists.flatten().to_numpy(zero_copy_only=False)
    if len(lengths) == 0:
        return np.zeros((0, 0), np.int32)
    if (lengths != lengths[0]).any():
        raise PicoError(f"{path} has rows of {lengths.min()} to {lengths.max()} ids: all must be alike", mend=MEND)
    return np.array(values.reshape(len(lengths), int(lengths[0])), dtype=np.int32)  # a copy: Arrow's is read-only


def _open(path: Path, columns: tuple[str, ...] | list[str] = ("input_ids",)) -> pq.ParquetFile:
    """Opens one shard, memory-mapped; a torn one, or one without the columns, is a PicoError that names it."""
    try:
        file = pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise PicoError(f"{path} cannot be read as Parquet: {error}", mend=MEND) from error
    missing = [column for column in columns if column not in file.schema_arrow.names]
    if missing:
        raise PicoError(f"{path} has no column {missing[0]!r}; it has {file.schema_arrow.names}", mend=MEND)
    return file
