"""The training order: documents shuffled over the whole corpus and joined, cut into rows, rows shuffled.

Both shuffles are pure functions of the seed and of the documents: not of files, blocks or workers. Without
`packing.shuffle` there are none. Documents are sorted by a hash of their id and the seed, on disk; of the rows a
permutation is held (eight bytes a row).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pico.config import Packing
from pico.data.preparation.blocks import Block, Progress, Store, write_table
from pico.data.tokens.hashing import MULTIPLIER, splitmix64
from pico.errors import PicoError
from pico.files import read_json, write_json

SEGMENT = np.dtype(
    [
        ("row", "<i4"), ("at", "<i4"), ("length", "<i4"), ("block", "<i4"), ("start", "<i8"), ("offset", "<i8"),
        ("source", "<i4"), ("source_row", "<i8"), ("id", "<u8", (4,)),
    ]
)  # fmt: skip
"""A piece of a document in a row: `row` of the shard, place `at` in the row, `length`; `start` in the file of ids of
`block`; `offset` in the document, which is row `source_row` of `source` and has this `id`."""
SEGMENT_COLUMNS = "block, source, row, start, length, id_0, id_1, id_2, id_3"
"""The columns of documents that segments are made of."""
BUFFERED = 2**18
"""Segments that are held before they are added to the files of their shards."""


def mixture(tokens: Mapping[str, int], shares: Mapping[str, float] | None, limit: float) -> dict[str, float]:
    """Returns repetitions by domain, so that each has its share of the training tokens: as many as `limit` allows.

    `tokens`: training tokens of each domain as they are. Without shares every document is seen once. Raises PicoError
    where shares and domains differ.
    """
    if shares is None:
        return dict.fromkeys(tokens, 1.0)
    if set(shares) != set(tokens):
        raise PicoError(
            f"packing.mixture names {sorted(shares)}, the corpus has the domains {sorted(tokens)}",
            where="params.yaml: packing.mixture",
            mend="give every domain of the corpus a share, and no other",
        )
    total = sum(shares.values())
    if not total:
        raise PicoError("all shares are 0", where="params.yaml: packing.mixture", mend="give one domain more than 0")
    per_token = {domain: shares[domain] / total / tokens[domain] for domain in tokens}
    scale = limit / max(per_token.values())
    return {domain: value * scale for domain, value in per_token.items()}


def copies(hashes: np.ndarray, repetitions: float) -> np.ndarray:
    """Returns how often each document is seen: int64, the whole part of `repetitions`, and for some once more.

    The fraction of `repetitions` is the share of these; which ones they are follows from their hashes (uint64).
    """
    whole = math.floor(repetitions)
    extra = splitmix64(hashes * MULTIPLIER + np.uint64(1)).astype(np.float64) < (repetitions - whole) * 2.0**64
    return whole + extra.astype(np.int64)


def order_keys(hashes: np.ndarray, seed: int, copy: int) -> np.ndarray:
    """Returns the sort keys of the copies numbered `copy` of documents of these hashes: uint64, random by seed."""
    start = splitmix64(np.array([seed % 2**64], np.uint64)) + np.uint64(copy)
    return splitmix64(splitmix64(hashes) ^ splitmix64(start * MULTIPLIER))


def order_block(store: Store, block: Block, repetitions: float, seed: int | None) -> None:
    """Writes the sort keys of a block's training documents, one a copy; without a seed they stay in order."""
    path = store.file("tokens", block.number)
    if not path.exists():
        return
    table = pq.read_table(path)
    table = table.filter(pa.array(~table["heldout"].to_numpy())).drop_columns(["n_bytes", "heldout", "changed"])
    hashes = table["id_0"].to_numpy()
    times = copies(hashes, repetitions)
    parts = []
    for copy in range(int(times.max()) if len(times) else 0):
        own = np.flatnonzero(times > copy)
        part = table.take(pa.array(own))
        if seed is None:  # all documents, then those of which there is a second copy
            keys = part["doc"].to_numpy().astype(np.uint64) + np.uint64(copy << 48)
        else:
            keys = order_keys(hashes[own], seed, copy)
        part = part.drop_columns(["doc"]).append_column("key", pa.array(keys))
        parts.append(part.append_column("copy", pa.array(np.full(len(own), copy, np.int32))))
    if parts:
        write_table(store.file("order", block.number), pa.concat_tables(parts), use_dictionary=False)


def pack(
    store: Store, blocks: Sequence[Block], packing: Packing, repetitions: Mapping[str, float], progress: Progress
) -> tuple[Path, dict[str, Any]]:
    """Sorts the documents into the training order, and the segments of the rows into files by shard.

    Returns the folder of those files, `<shard>.segments`, and the counts `rows`, `tail_tokens`, `tail_documents` (those
    that end in what is left over), `tokens` and `documents` (with repetitions).
    """
    row_len = packing.seq_len + 1
    seed = packing.seed if packing.shuffle else None
    store.map("order", order_block, [(block, repetitions[block.domain], seed) for block in blocks])

    def sort(folder: Path) -> None:
        total, documents = 0, 0
        for path in sorted((store.folder / "order").glob("*.parquet")):
            lengths = pq.read_table(path, columns=["length"])["length"].to_numpy()
            total, documents = total + int(lengths.sum()), documents + len(lengths)
        rows = total // row_len
        if not rows:
            raise PicoError(
                f"the corpus is too small for one training row: {total} tokens in {documents} training documents, "
                f"and a row holds packing.seq_len + 1 = {row_len}",
                where=f"params.yaml: corpus.sources, packing.seq_len = {packing.seq_len}",
                mend="give it more text, or lower packing.seq_len",
            )
        place = np.arange(rows)
        if packing.shuffle:
            generator = np.random.Generator(np.random.PCG64([packing.seed % 2**64, 1]))
            place[generator.permutation(rows)] = np.arange(rows)
        cutter = RowCutter(folder, place, row_len, packing.rows_per_shard)
        for batch in store.sorted("order", SEGMENT_COLUMNS, "key, id_0, id_1, id_2, id_3, copy"):
            cutter.add(batch)
            progress(cutter.stream / total)
        cutter.flush()
        counts = {"rows": rows, "tokens": total, "documents": documents, "tail_tokens": total - rows * row_len,
                  "tail_documents": documents - cutter.ended}  # fmt: skip
        write_json(folder / "counts.json", counts)

    folder = store.once("segments", sort)
    return folder, read_json(folder / "counts.json")


class RowCutter:
    """Cuts the stream of documents into rows, and adds their segments to the files of their shards."""

    def __init__(self, folder: Path, place: np.ndarray, row_len: int, rows_per_shard: int) -> None:
        self.stream, self.ended = 0, 0
        """Ids so far; documents so far that end within a row."""
        self._folder, self._place, self._row_len, self._rows_per_shard = folder, place, row_len, rows_per_shard
        self._segments: list[np.ndarray] = []
        self._shards: list[np.ndarray] = []

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """Adds the next documents in the order."""
        ends = self.stream + np.cumsum(batch["length"])
        row, found = cut(batch, ends, self._row_len)
        self.ended += int(np.searchsorted(ends, len(self._place) * self._row_len, side="right"))
        self.stream = int(ends[-1])
        whole = row < len(self._place)
        place, found = self._place[row[whole]], found[whole]
        found["row"] = place % self._rows_per_shard
        self._segments.append(found)
        self._shards.append(place // self._rows_per_shard)
        if sum(map(len, self._segments)) > BUFFERED:
            self.flush()

    def flush(self) -> None:
        """Writes the segments that are held to the files."""
        if not self._segments:
            return
        found, shards = np.concatenate(self._segments), np.concatenate(self._shards)
        self._segments, self._shards = [], []
        order = np.argsort(shards, kind="stable")
        numbers, starts = np.unique(shards[order], return_index=True)
        for number, part in zip(numbers.tolist(), np.split(found[order], starts[1:]), strict=True):
            with open(segment_file(self._folder, number), "ab") as file:
                file.write(part.tobytes())


def segment_file(folder: Path, shard: int) -> Path:
    """Returns the path of the segments of a shard."""
    return folder / f"{shard:06d}.segments"


def cut(batch: Mapping[str, np.ndarray], ends: np.ndarray, row_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row of each segment of some documents (int64), and the segments, whose field `row` is not filled.

    `batch`: SEGMENT_COLUMNS of documents in their order; `ends`: where each ends in the stream of all ids.
    """
    lengths = batch["length"]
    document, row, at, offset, length = segments(ends - lengths, lengths, row_len)
    found = np.empty(len(row), SEGMENT)
    found["at"], found["length"], found["offset"] = at, length, offset
    found["block"], found["start"] = batch["block"][document], batch["start"][document] + offset
    found["source"], found["source_row"] = batch["source"][document], batch["row"][document]
    for number in range(4):
        found["id"][:, number] = batch[f"id_{number}"][document]
    return row, found


def segments(starts: np.ndarray, lengths: np.ndarray, row_len: int) -> tuple[np.ndarray, ...]:
    """Cuts documents that are joined into one stream of ids into rows of `row_len`.

    `starts`: where each document begins in the stream; `lengths`: its ids, EOS counted. Returns five int64 arrays, one
    entry a segment, in the order of the stream: the number of the document; its row; its place in the row; where in the
    document it begins; its length. The segments of a row fill it without gaps, but for the last row.
    """
    first, last = starts // row_len, (starts + lengths - 1) // row_len
    counts = last - first + 1
    document = np.repeat(np.arange(len(starts)), counts)
    row = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts) + first[document]
    begin = np.maximum(starts[document], row * row_len)
    end = np.minimum((starts + lengths)[document], (row + 1) * row_len)
    return document, row, begin - row * row_len, begin - starts[document], end - begin


def spread_evenly(rows: int, limit: int) -> np.ndarray:
    """Returns the numbers of at most `limit` of `rows` rows, evenly spread: int64, ascending.

    Evenly, because the first rows alone would be of a single document where documents are long.
    """
    return np.arange(rows) if rows <= limit else np.arange(limit) * rows // limit
