"""The training order: documents shuffled over the whole corpus and joined, cut into rows, rows shuffled.

Both shuffles are pure functions of the seed and of the documents: not of files, blocks or workers. Without
`packing.shuffle` there are none. Documents are sorted
by a hash of their id and the seed, on disk; of the rows a permutation is held (eight bytes a row).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pico.config import Packing
from pico.data.preparation.near_duplicates import MIX, mixed
from pico.data.preparation.work import Block, Progress, Work, write_table
from pico.data.tokens.packing import segments, shuffled
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

FLUSHED = 2**18
"""Segments that are held before they are added to the files of their shards."""


def mixture(tokens: Mapping[str, int], shares: Mapping[str, float] | None, limit: float) -> dict[str, float]:
    """Repetitions by domain, so that of the training tokens each has its share: as many as `limit` allows.

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
    """How often each document is seen: int64. The whole part of `repetitions`, and once more for its fraction of them.

    Which ones those are follows from their hashes (uint64).
    """
    whole = math.floor(repetitions)
    extra = mixed(hashes * MIX + np.uint64(1)).astype(np.float64) < (repetitions - whole) * 2.0**64
    return whole + extra.astype(np.int64)


def order_keys(hashes: np.ndarray, seed: int, copy: int) -> np.ndarray:
    """What the copies numbered `copy` of documents of these hashes are sorted by: uint64, a random order a seed."""
    start = mixed(np.array([seed % 2**64], np.uint64)) + np.uint64(copy)
    return mixed(mixed(hashes) ^ mixed(start * MIX))


def order_block(work: Work, block: Block, repetitions: float, seed: int | None) -> None:
    """Writes the place in the order of a block's training documents, once a copy; without a seed they stay in order."""
    path = work.file("tokens", block.number)
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
        write_table(work.file("order", block.number), pa.concat_tables(parts), use_dictionary=False)


def plan(
    work: Work, blocks: Sequence[Block], packing: Packing, repetitions: Mapping[str, float], progress: Progress
) -> tuple[Path, dict[str, Any]]:
    """Sorts the documents into the training order, and the segments of the rows into files by shard.

    Gives the folder of those files, `<shard>.segments`, and the counts `rows`, `tail_tokens`, `tail_documents` (those
    that end in what is left over), `tokens` and `documents` (with repetitions).
    """
    row_len = packing.seq_len + 1
    seed = packing.seed if packing.shuffle else None
    work.each("order", order_block, [(block, repetitions[block.domain], seed) for block in blocks])

    def sort(folder: Path) -> None:
        total, documents = 0, 0
        for path in sorted((work.folder / "order").glob("*.parquet")):
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
            place[shuffled(rows, packing.seed, 1)] = np.arange(rows)
        cut = Cut(folder, place, row_len, packing.rows_per_shard)
        columns = "block, source, row, start, length, id_0, id_1, id_2, id_3"
        for batch in work.sorted("order", columns, "key, id_0, id_1, id_2, id_3, copy"):
            cut.add(batch)
            progress(cut.stream / total)
        cut.flush()
        counts = {"rows": rows, "tokens": total, "documents": documents, "tail_tokens": total - rows * row_len,
                  "tail_documents": documents - cut.ended}  # fmt: skip
        write_json(folder / "counts.json", counts)

    folder = work.once("segments", sort)
    return folder, read_json(folder / "counts.json")


class Cut:
    """Cuts the stream of documents into rows, and adds their segments to the files of their shards."""

    def __init__(self, folder: Path, place: np.ndarray, row_len: int, rows_per_shard: int) -> None:
        self.stream, self.ended = 0, 0
        """Ids so far; documents so far that end within a row."""
        self._folder, self._place, self._row_len, self._rows_per_shard = folder, place, row_len, rows_per_shard
        self._held: list[np.ndarray] = []
        self._shards: list[np.ndarray] = []

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """The next documents in the order."""
        lengths = batch["length"]
        ends = self.stream + np.cumsum(lengths)
        document, row, at, offset, length = segments(ends - lengths, lengths, self._row_len)
        self.ended += int(np.searchsorted(ends, len(self._place) * self._row_len, side="right"))
        self.stream = int(ends[-1])
        whole = row < len(self._place)
        document, at, offset, length = document[whole], at[whole], offset[whole], length[whole]
        place = self._place[row[whole]]
        found = np.empty(len(place), SEGMENT)
        found["row"], found["at"], found["length"] = place % self._rows_per_shard, at, length
        found["block"], found["start"] = batch["block"][document], batch["start"][document] + offset
        found["offset"] = offset
        found["source"], found["source_row"] = batch["source"][document], batch["row"][document]
        for number in range(4):
            found["id"][:, number] = batch[f"id_{number}"][document]
        self._held.append(found)
        self._shards.append(place // self._rows_per_shard)
        if sum(map(len, self._held)) > FLUSHED:
            self.flush()

    def flush(self) -> None:
        """Adds what is held to the files."""
        if not self._held:
            return
        held, shards = np.concatenate(self._held), np.concatenate(self._shards)
        self._held, self._shards = [], []
        order = np.argsort(shards, kind="stable")
        numbers, starts = np.unique(shards[order], return_index=True)
        for number, part in zip(numbers.tolist(), np.split(held[order], starts[1:]), strict=True):
            with open(segment_file(self._folder, number), "ab") as file:
                file.write(part.tobytes())


def segment_file(folder: Path, shard: int) -> Path:
    """Where the segments of a shard are."""
    return folder / f"{shard:06d}.segments"
