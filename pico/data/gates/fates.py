"""What became of each document of `data/documents/`: trained on, held out, or not used; by row group."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pico.data.sources.token_rows import hash_of
from pico.data.tokens.tokenizer import TokenBytes, load_tokenizer, spelled, tokenizer_meta
from pico.errors import PicoError
from pico.files import read_json

UNUSED, TRAIN, HELDOUT = range(3)
"""Fates, as uint8. Unused: dropped as a duplicate, by a filter, or beyond the domain's share."""


@dataclass(frozen=True)
class Block:
    """A row group of documents: the unit of work, so that memory does not grow with the corpus."""

    number: int
    source: str
    domain: str
    path: Path
    group: int
    """Which row group of the file."""
    first: int
    """The row of its first document in the file."""
    fates: np.ndarray = field(repr=False)
    """uint8 (documents,)"""
    tokenizer: Path | None = None
    """The folder of the tokenizer that turns them into text, where they are rows of ids."""

    def read(self, columns: Sequence[str] = ("id", "source", "domain", "text")) -> pa.Table:
        """Its documents; an unreadable file is a PicoError that names it.

        Of rows of ids `text` is what they stand for, documents apart by a blank line; and beside it `hash` is what
        their ids should be.
        """
        decoded = self.tokenizer is not None and "text" in columns
        names = ["input_ids" if decoded and name == "text" else name for name in columns]
        try:
            table = pq.ParquetFile(self.path).read_row_group(self.group, columns=names)
            return _decoded(table, self.tokenizer) if self.tokenizer and decoded else table
        except (pa.ArrowException, OSError) as error:
            raise PicoError(f"{self.path} cannot be read as Parquet: {error}", mend="run: dvc repro fetch") from error


def document_blocks(documents: Path, tokens: Path) -> list[Block]:
    """All row groups, in the order of sources.json, with what `prepare` says in `tokens` became of their documents.

    Used are those of which a row holds a part: a document that was cut off with the tail, or is beyond the held-out
    rows, is not. Raises PicoError where the two folders do not belong together.
    """
    fates = {}
    for entry in read_json(documents / "sources.json"):
        rows = pq.read_metadata(documents / f"{entry['name']}.parquet").num_rows
        fates[entry["name"]] = np.full(rows, UNUSED, np.uint8)
    for kind, fate in (("train-provenance", TRAIN), ("heldout-provenance", HELDOUT)):
        for path in sorted((tokens / kind).glob("*.parquet")):
            for batch in pq.ParquetFile(path).iter_batches(columns=["source", "document_row"]):
                _mark(fates, batch, fate, path)
    blocks: list[Block] = []
    for entry in read_json(documents / "sources.json"):
        path, first = documents / f"{entry['name']}.parquet", 0
        footer = pq.read_metadata(path)
        for group in range(footer.num_row_groups):
            end = first + footer.row_group(group).num_rows
            of_group = fates[entry["name"]][first:end]
            tokenizer = tokens / "tokenizer" if "row_tokens" in entry else None
            blocks.append(Block(len(blocks), entry["name"], entry["domain"], path, group, first, of_group, tokenizer))
            first = end
    return blocks


def _mark(fates: dict[str, np.ndarray], batch: pa.RecordBatch, fate: int, path: Path) -> None:
    """Notes the fate of every document that a batch of a provenance file names."""
    sources = batch.column("source").to_numpy(zero_copy_only=False)
    rows = batch.column("document_row").to_numpy(zero_copy_only=False)
    for source in set(sources):
        own = rows[sources == source]
        if source not in fates or own.max() >= len(fates[source]):
            raise PicoError(f"{path} names documents of {source} that are not there", mend="run: dvc repro prepare")
        fates[source][own] = fate


def _decoded(table: pa.Table, tokenizer: Path) -> pa.Table:
    """The table with `text` and `hash` in place of `input_ids`."""
    pieces, eos = TokenBytes(load_tokenizer(tokenizer)), tokenizer_meta(tokenizer)["eos_id"]
    lists = table["input_ids"].combine_chunks()
    rows = np.split(lists.flatten().to_numpy(), np.cumsum(lists.value_lengths().to_numpy())[:-1])
    # A row may begin or end within a character, which is no fault of the text.
    texts = [spelled(row, pieces, eos, "\n\n").strip("\ufffd") for row in rows]
    table = table.set_column(table.column_names.index("input_ids"), "text", pa.array(texts, pa.string()))
    return table.append_column("hash", pa.array([hash_of(row) for row in rows], pa.string()))


def domain_counts(documents: Path) -> dict[str, int]:
    """Documents of each domain as they were fetched, from the files' footers alone."""
    counts: dict[str, int] = {}
    for entry in read_json(documents / "sources.json"):
        rows = pq.read_metadata(documents / f"{entry['name']}.parquet").num_rows
        counts[entry["domain"]] = counts.get(entry["domain"], 0) + rows
    return dict(sorted(counts.items()))


def count(blocks: Sequence[Block], domain: str, fate: int) -> int:
    """Documents of a domain with that fate."""
    return sum(int((block.fates == fate).sum()) for block in blocks if block.domain == domain)
