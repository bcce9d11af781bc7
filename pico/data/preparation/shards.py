"""Writes the rows: training shards, held-out rows, and beside each the documents that its ids came from.

The layout is that of the published pre-tokenized data set: column `input_ids`, shards `train-00000-of-000NN.parquet`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pico.config import Packing
from pico.data.preparation.blocks import Block, Progress, Store, by_domain, replacing, write_bytes
from pico.data.preparation.packing import SEGMENT, SEGMENT_COLUMNS, cut, segment_file, spread_evenly
from pico.data.preparation.tokenization import id_type
from pico.data.tokens.tokenizer import target_bytes

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
PROVENANCE_ROWS = 2**16
"""Segments of a row group, the unit that is read to look at a row."""


class SourceSpan(NamedTuple):
    """A source of documents, and where these begin."""

    name: str
    domain: str
    first: int
    """The number of its first document, counted over all sources."""


def source_spans(blocks: Sequence[Block]) -> dict[int, SourceSpan]:
    """Returns the sources that have documents, by their place in sources.json."""
    return {block.source: SourceSpan(block.name, block.domain, block.first - block.first_row) for block in blocks}


def write_shards(
    store: Store, out: Path, blocks: Sequence[Block], packed: Path, packing: Packing, rows: int, vocab_size: int,
    progress: Progress,
) -> np.ndarray:  # fmt: skip
    """Writes `train/` and `train-provenance/` below `out`. Returns how often each id occurs, int64 (vocab_size,)."""
    count = -(-rows // packing.rows_per_shard)
    for folder in (out / "train", out / "train-provenance", store.folder / "published"):
        folder.mkdir(parents=True, exist_ok=True)
    sources = source_spans(blocks)
    calls = []
    for number in range(count):
        first = number * packing.rows_per_shard
        size = min(packing.rows_per_shard, rows - first)
        calls.append((number, out, packed, count, (first, size, packing.seq_len + 1), vocab_size, sources))
    store.map("counts", write_shard, calls, progress)
    counts = np.zeros(vocab_size, np.int64)
    for number in range(count):
        counts += np.fromfile(store.file("counts", number, ".counts"), np.int64)
    return counts


def write_shard(
    store: Store,
    number: int,
    out: Path,
    packed: Path,
    count: int,
    shape: tuple[int, int, int],
    vocab_size: int,
    sources: Mapping[int, SourceSpan],
) -> None:
    """Writes one shard, its provenance, the documents in it, and how often each id occurs in it.

    `shape`: the number of its first row, rows, ids of a row.
    """
    first, size, row_len = shape
    found = np.fromfile(segment_file(packed, number), SEGMENT)
    rows = gather(store, found, (size, row_len), vocab_size)
    name = shard_name(number, count)
    with replacing(out / "train" / name) as partial:
        write_rows(partial, rows)
    write_provenance(out / "train-provenance" / name, found, first, sources)
    write_bytes(store.file("published", number, ".train"), documents_in(found, sources))
    counts = np.zeros(vocab_size, np.int64)
    for part in _parts(rows):
        counts += np.bincount(part.reshape(-1), minlength=vocab_size)
    write_bytes(store.file("counts", number, ".counts"), counts)


def gather(store: Store, found: np.ndarray, shape: tuple[int, int], vocab_size: int) -> np.ndarray:
    """Returns the rows that segments make up, of the type of the files of ids.

    These are read one after another, each from front to back. They are read, not memory-mapped: pages that are mapped
    count as memory of the process, and come in sixteens.
    """
    rows: np.ndarray = np.empty(shape, id_type(vocab_size))
    width, view = rows.itemsize, rows.reshape(-1).view(np.uint8).data
    order = np.lexsort((found["start"], found["block"]))
    targets = ((found["row"].astype(np.int64) * shape[1] + found["at"]) * width)[order].tolist()
    sizes = (found["length"].astype(np.int64) * width)[order].tolist()
    sources = (found["start"] * width)[order].tolist()
    numbers = found["block"][order]
    starts = np.concatenate([[True], numbers[1:] != numbers[:-1]]) if len(found) else np.zeros(0, bool)
    edges = [*np.flatnonzero(starts).tolist(), len(found)]
    for begin, end in pairwise(edges):
        file = os.open(store.file("ids", int(numbers[begin]), ".ids"), os.O_RDONLY)
        try:
            for index in range(begin, end):
                target = view[targets[index] : targets[index] + sizes[index]]
                if os.preadv(file, [target], sources[index]) != len(target):
                    raise OSError(f"the ids of block {numbers[begin]} are cut short: delete {store.folder}")
        finally:
            os.close(file)
    return rows


def documents_in(found: np.ndarray, sources: Mapping[int, SourceSpan]) -> np.ndarray:
    """Returns the numbers of the documents that segments are parts of: int64, ascending."""
    numbers = found["source_row"].copy()
    for source in np.unique(found["source"]).tolist():
        numbers[found["source"] == source] += sources[source].first
    return np.unique(numbers)


def write_provenance(path: Path, found: np.ndarray, first: int, sources: Mapping[int, SourceSpan]) -> None:
    """Writes which document each part of each row came from, sorted by row and place. Columns:

    `row` (int64, counted over all shards), `position` (of the segment in the row), `length` (ids), `document` (its id),
    `offset` (of the segment in the document's ids), `source`, `domain`, `document_row` (in `<source>.parquet`).
    """
    found = found[np.lexsort((found["at"], found["row"]))]
    hexadecimal = found["id"].astype(">u8").tobytes().hex()
    ids = [hexadecimal[start : start + 64] for start in range(0, len(hexadecimal), 64)]
    numbers = sorted(sources)
    names = pa.array([sources[number].name for number in numbers])
    domains = pa.array([sources[number].domain for number in numbers])
    index = pa.array(np.searchsorted(numbers, found["source"]).astype(np.int32))
    columns = {
        "row": pa.array(found["row"].astype(np.int64) + first),
        "position": pa.array(found["at"]),
        "length": pa.array(found["length"]),
        "document": pa.array(ids, pa.string()),
        "offset": pa.array(found["offset"]),
        "source": names.take(index),
        "domain": domains.take(index),
        "document_row": pa.array(found["source_row"]),
    }
    options = WRITE | {"use_dictionary": ["source", "domain"], "write_statistics": ["row"]}
    with replacing(path) as partial:
        pq.write_table(pa.table(columns), partial, row_group_size=PROVENANCE_ROWS, **options)


def write_heldout_rows(
    store: Store, out: Path, blocks: Sequence[Block], packing: Packing, sizes: np.ndarray
) -> dict[str, dict[str, int]]:
    """Writes `heldout/`, `heldout-provenance/` and `tinsy/`, a file a domain.

    The held-out documents of a domain are joined in the order of their ids and cut into rows. Of these at most
    `heldout_rows` are kept, evenly spread, and of those `tinsy_rows` for what is measured at every checkpoint.
    `sizes`: bytes of each id. Returns by domain the counts of `tokens`, whole `rows`, rows `kept`, and `tinsy` rows.
    """
    row_len = packing.seq_len + 1
    sources = source_spans(blocks)
    for name in ("heldout", "heldout-provenance", "tinsy"):
        (out / name).mkdir(parents=True, exist_ok=True)
    counts = {}
    for domain, own in by_domain(blocks).items():
        where = f"heldout AND source IN ({','.join(sorted({str(block.source) for block in own}))})"
        order = "id_0, id_1, id_2, id_3, doc"
        total = sum(int(batch["length"].sum()) for batch in store.sorted("tokens", "length", order, where))
        whole = total // row_len
        chosen = spread_evenly(whole, packing.heldout_rows)
        found = _heldout_segments(store, where, order, chosen, row_len)
        rows = gather(store, found, (len(chosen), row_len), len(sizes))
        write_heldout(out / "heldout" / f"{domain}.parquet", rows, target_bytes(rows, sizes))
        write_provenance(out / "heldout-provenance" / f"{domain}.parquet", found, 0, sources)
        write_bytes(store.folder / "published" / f"{domain}.heldout", documents_in(found, sources))
        few = rows[spread_evenly(len(rows), packing.tinsy_rows)]
        write_heldout(out / "tinsy" / f"{domain}.parquet", few, target_bytes(few, sizes))
        counts[domain] = {"tokens": total, "rows": whole, "kept": len(chosen), "tinsy": len(few)}
    return counts


def _heldout_segments(store: Store, where: str, order: str, chosen: np.ndarray, row_len: int) -> np.ndarray:
    parts = [np.empty(0, SEGMENT)]
    stream = 0
    for batch in store.sorted("tokens", SEGMENT_COLUMNS, order, where):
        ends = stream + np.cumsum(batch["length"])
        row, found = cut(batch, ends, row_len)
        stream = int(ends[-1])
        own = np.isin(row, chosen)
        found = found[own]
        found["row"] = np.searchsorted(chosen, row[own])
        parts.append(found)
    return np.concatenate(parts)


def write_heldout(path: Path, rows: np.ndarray, n_bytes: np.ndarray) -> None:
    """Writes `heldout/<domain>.parquet` or `tinsy/<domain>.parquet`: `input_ids` and `n_bytes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"input_ids": rows_array(rows), "n_bytes": pa.array(n_bytes, pa.int64())})
    pq.write_table(table, path, row_group_size=_row_group_rows(rows.shape[1]), **WRITE)


def shard_name(number: int, count: int) -> str:
    """Returns the name of a shard: `train-00000-of-00003.parquet`."""
    return f"train-{number:05d}-of-{count:05d}.parquet"


def write_rows(path: Path, rows: np.ndarray) -> None:
    """Writes rows, integers (n, seq_len + 1), as one shard: column `input_ids`, int32."""
    schema = pa.schema([("input_ids", pa.list_(pa.int32()))])
    size = _row_group_rows(rows.shape[1])
    with pq.ParquetWriter(path, schema, **WRITE) as writer:
        for part in _parts(rows):
            writer.write_table(pa.table({"input_ids": rows_array(part)}), row_group_size=size)


def rows_array(rows: np.ndarray) -> pa.ListArray:
    """Returns rows as an Arrow list<int32> array."""
    offsets = np.arange(len(rows) + 1, dtype=np.int64) * rows.shape[1]
    values = pa.array(np.ascontiguousarray(rows, dtype=np.int32).reshape(-1))
    if offsets[-1] >= 2**31:
        raise ValueError(
            f"a shard of {offsets[-1]} ids does not fit a list<int32> column: lower packing.rows_per_shard"
        )
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def _row_group_rows(row_len: int) -> int:
    """Returns the rows of a row group, the unit that the loader decodes: about half a megabyte at any row length."""
    return max(1, 2**17 // row_len)


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the rows, PART row groups at a time; no rows are one part."""
    size = PART * _row_group_rows(rows.shape[1])
    for first in range(0, max(1, len(rows)), size):
        yield rows[first : first + size]
