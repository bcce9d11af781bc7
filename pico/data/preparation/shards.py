"""Writes the outs of preparation: training shards, held-out rows, and beside each where its ids came from."""

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pico.config import Packing
from pico.data.preparation.sampling import block_uses, new_array, words_of
from pico.data.preparation.shuffling import SEGMENT, copies, segment_file
from pico.data.preparation.tokenization import id_type
from pico.data.preparation.work import Block, Progress, Work, write_bytes
from pico.data.tokens.documents import LABELS, Use
from pico.data.tokens.heldout import spread_evenly, target_bytes, write_heldout
from pico.data.tokens.packing import WRITE, parts_of, segments, shard_name, write_rows
from pico.files import full_disk_named

PROVENANCE_ROWS = 2**16
"""Segments of a row group, the unit that is read to look at a row."""


class Source(NamedTuple):
    """A source of documents."""

    name: str
    domain: str
    first: int
    """The number of its first document, counted over all sources."""


def sources_of(blocks: Sequence[Block]) -> dict[int, Source]:
    """Returns the sources that have documents, by their place in sources.json."""
    return {block.source: Source(block.name, block.domain, block.first - block.first_row) for block in blocks}


def write_shards(
    work: Work, out: Path, blocks: Sequence[Block], plan: Path, packing: Packing, rows: int, vocab_size: int,
    progress: Progress,
) -> np.ndarray:  # fmt: skip
    """Writes `train/` and `train-provenance/` below `out`; gives how often each id occurs, int64 (vocab_size,)."""
    count = -(-rows // packing.rows_per_shard)
    for name in ("train", "train-provenance"):
        (out / name).mkdir(parents=True, exist_ok=True)
    (work.folder / "published").mkdir(exist_ok=True)
    sources = sources_of(blocks)
    calls = []
    for number in range(count):
        size = min(packing.rows_per_shard, rows - number * packing.rows_per_shard)
        first = number * packing.rows_per_shard
        calls.append((number, out, plan, count, (first, size, packing.seq_len + 1), vocab_size, sources))
    work.each("counts", write_shard, calls, progress)
    counts = np.zeros(vocab_size, np.int64)
    for number in range(count):
        counts += np.fromfile(work.file("counts", number, ".counts"), np.int64)
    return counts


def write_shard(
    work: Work,
    number: int,
    out: Path,
    plan: Path,
    count: int,
    shape: tuple[int, int, int],
    vocab_size: int,
    sources: Mapping[int, Source],
) -> None:
    """Writes one shard, its provenance, the documents in it, and how often each id occurs in it.

    `shape`: the number of its first row, rows, ids of a row.
    """
    first, size, row_len = shape
    found = np.fromfile(segment_file(plan, number), SEGMENT)
    rows = gather(work, found, (size, row_len), vocab_size)
    name = shard_name(number, count)
    write_whole(out / "train" / name, rows)
    write_provenance(out / "train-provenance" / name, found, first, sources)
    write_bytes(work.file("published", number, ".train"), documents_in(found, sources))
    counts = np.zeros(vocab_size, np.int64)
    for part in parts_of(rows):
        counts += np.bincount(part.reshape(-1), minlength=vocab_size)
    write_bytes(work.file("counts", number, ".counts"), counts)


def write_whole(path: Path, rows: np.ndarray) -> None:
    """Writes a shard by way of a hidden neighbour."""
    partial = path.with_name(f".{path.name}.partial")
    write_rows(partial, rows)
    os.replace(partial, path)


def gather(work: Work, found: np.ndarray, shape: tuple[int, int], vocab_size: int) -> np.ndarray:
    """The rows that segments make up, of the type of the files of ids. These are read one after another, each from
    front to back.

    Read, not memory-mapped: pages that are mapped count as memory of the process, and come in sixteens.
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
        file = os.open(work.file("ids", int(numbers[begin]), ".ids"), os.O_RDONLY)
        try:
            for index in range(begin, end):
                target = view[targets[index] : targets[index] + sizes[index]]
                if os.preadv(file, [target], sources[index]) != len(target):
                    raise OSError(f"the ids of block {numbers[begin]} are cut short: delete {work.folder}")
        finally:
            os.close(file)
    return rows


def documents_in(found: np.ndarray, sources: Mapping[int, Source]) -> np.ndarray:
    """Returns the numbers of the documents that segments are parts of: int64, ascending."""
    numbers = found["source_row"].copy()
    for source in np.unique(found["source"]).tolist():
        numbers[found["source"] == source] += sources[source].first
    return np.unique(numbers)


def write_provenance(path: Path, found: np.ndarray, first: int, sources: Mapping[int, Source]) -> None:
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
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.table(columns), partial, row_group_size=PROVENANCE_ROWS, **options)
    os.replace(partial, path)


def write_heldout_rows(
    work: Work, out: Path, blocks: Sequence[Block], packing: Packing, sizes: np.ndarray
) -> dict[str, dict[str, int]]:
    """Writes `heldout/`, `heldout-provenance/` and `tinsy/`, a file a domain; gives by domain the counts of `tokens`,
    whole `rows`, and rows `kept`.

    The held-out documents of a domain are joined in the order of their ids and cut into rows. Of these at most
    `heldout_rows` are kept, evenly spread, and of those `tinsy_rows` for what is measured at every checkpoint.
    `sizes`: bytes of each id.
    """
    row_len = packing.seq_len + 1
    sources = sources_of(blocks)
    for name in ("heldout", "heldout-provenance", "tinsy"):
        (out / name).mkdir(parents=True, exist_ok=True)
    counts = {}
    for domain in sorted({block.domain for block in blocks}):
        own = ",".join(str(source) for source in sorted(sources) if sources[source].domain == domain)
        where = f"heldout AND source IN ({own})"
        order = "id_0, id_1, id_2, id_3, doc"
        total = sum(int(batch["length"].sum()) for batch in work.sorted("tokens", "length", order, where))
        whole = total // row_len
        chosen = spread_evenly(whole, packing.heldout_rows)
        found = _heldout_segments(work, where, order, chosen, row_len)
        rows = gather(work, found, (len(chosen), row_len), len(sizes))
        write_heldout(out / "heldout" / f"{domain}.parquet", rows, target_bytes(rows, sizes))
        write_provenance(out / "heldout-provenance" / f"{domain}.parquet", found, 0, sources)
        write_bytes(work.folder / "published" / f"{domain}.heldout", documents_in(found, sources))
        few = rows[spread_evenly(len(rows), packing.tinsy_rows)]
        write_heldout(out / "tinsy" / f"{domain}.parquet", few, target_bytes(few, sizes))
        counts[domain] = {"tokens": total, "rows": whole, "kept": len(chosen), "tinsy": len(few)}
    return counts


def _heldout_segments(work: Work, where: str, order: str, chosen: np.ndarray, row_len: int) -> np.ndarray:
    """The segments of the chosen rows (ascending) of one domain."""
    parts = [np.empty(0, SEGMENT)]
    stream = 0
    columns = "block, source, row, start, length, id_0, id_1, id_2, id_3"
    for batch in work.sorted("tokens", columns, order, where):
        ends = stream + np.cumsum(batch["length"])
        document, row, at, offset, length = segments(ends - batch["length"], batch["length"], row_len)
        stream = int(ends[-1])
        place = np.searchsorted(chosen, row)
        own = (
            np.flatnonzero((place < len(chosen)) & (chosen[np.minimum(place, len(chosen) - 1)] == row))
            if len(chosen)
            else np.zeros(0, np.int64)
        )
        document = document[own]
        part = np.empty(len(own), SEGMENT)
        part["row"], part["at"], part["length"], part["offset"] = place[own], at[own], length[own], offset[own]
        part["block"], part["start"] = batch["block"][document], batch["start"][document] + offset[own]
        part["source"], part["source_row"] = batch["source"][document], batch["row"][document]
        for number in range(4):
            part["id"][:, number] = batch[f"id_{number}"][document]
        parts.append(part)
    return np.concatenate(parts)


def write_documents(
    work: Work, out: Path, blocks: Sequence[Block], uses: Path, repetitions: Mapping[str, float]
) -> None:
    """Writes `documents/`, the use of every document (see `pico.data.tokens.documents`), a file a source.

    `uses`: what was decided of each document. Whether a row that is published holds a part of it, shards and held-out
    rows say, which are written before. `repetitions`: by domain, see `mixture`.
    """
    (out / "documents").mkdir(exist_ok=True)

    def combine(folder: Path) -> None:
        published = new_array(folder / "published", bool, blocks)
        for path in sorted((work.folder / "published").iterdir()):
            published[np.fromfile(path, np.int64)] = True
        published.flush()

    published = work.once("combined", combine) / "published"
    calls = [
        (
            number,
            out,
            [block for block in blocks if block.source == number],
            uses,
            published,
            repetitions[source.domain],
        )
        for number, source in sources_of(blocks).items()
    ]
    work.each("documents", write_source, calls)


def write_source(
    work: Work, number: int, out: Path, blocks: Sequence[Block], uses: Path, published: Path, repetitions: float
) -> None:
    """Writes the table of one source, whose blocks are `blocks`; a row group a block."""
    path = out / "documents" / f"{blocks[0].name}.parquet"
    partial = path.with_name(f".{path.name}.partial")
    options = WRITE | {"use_dictionary": ["use"]}
    schema = pa.schema([("id", pa.string()), ("use", pa.string())])
    with full_disk_named(path), pq.ParquetWriter(partial, schema, **options) as writer:
        for block in blocks:
            ids = block.read(["id"])["id"]
            own = block_uses(uses, block)
            found = np.fromfile(published, bool, block.rows, offset=block.first)
            drawn = copies(words_of(ids.to_pylist())[:, 0], repetitions) > 0
            own[(own == Use.TRAIN) & ~found] = Use.TAIL
            own[(own == Use.TAIL) & ~drawn] = Use.NOT_REPEATED
            own[(own == Use.HELDOUT) & ~found] = Use.BEYOND_HELDOUT_ROWS
            writer.write_table(
                pa.table({"id": ids, "use": LABELS.take(pa.array(own))}), row_group_size=block.rows or None
            )
        writer.close()
        os.replace(partial, path)
    write_bytes(work.file("documents", number, ".done"), b"")
