"""The documents of `data/documents/` by row group, with the use that stage `prepare` made of each.

`data/tokens/documents/` says the uses. They are checked against the documents, the provenance of the rows that were
published, and the counts in provenance.json; gates on data of which these disagree would say nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pico.data.tokens.documents import DROPPED, Use, parquet_named, read_groups, read_uses
from pico.data.tokens.tokenizer import TokenBytes, load_tokenizer, spelled, tokenizer_meta
from pico.errors import PicoError
from pico.files import read_json

MEND = "make the tokens again: dvc repro prepare"


@dataclass(frozen=True)
class RowGroup:
    """A row group of documents: the unit of work, so that memory does not grow with the corpus."""

    number: int
    source: str
    domain: str
    path: Path
    group: int
    """The number of the row group in the file."""
    first: int
    """The row of its first document in the file."""
    place: int
    """The same over all documents."""
    uses: np.ndarray = field(repr=False)
    """Numbers of `Use`: uint8 (documents,)."""
    tokens: Path
    """`data/tokens/`"""
    of_ids: bool = False
    """The documents are rows of ids, and the tokenizer in `tokens` turns them into text."""

    def used(self) -> np.ndarray:
        """Returns the documents that rows hold, trained on or held out: int64, rows of the group."""
        return np.flatnonzero((self.uses == Use.TRAIN) | (self.uses == Use.HELDOUT))

    def count(self, use: Use) -> int:
        """Returns how many documents have a use."""
        return int((self.uses == use).sum())

    def read(self, columns: Sequence[str] = ("id", "source", "domain", "text")) -> pa.Table:
        """Returns its documents. Raises PicoError where the file cannot be read.

        Where they are rows of ids, `text` is the text of the ids, documents apart by a blank line; beside it, `hash` is
        the hash of the ids, which should be the row's id.
        """
        decoded = self.of_ids and "text" in columns
        table = _read(self.path, self.group, ["input_ids" if decoded and name == "text" else name for name in columns],
                      "run: dvc repro fetch")  # fmt: skip
        return _decoded(table, self.tokens / "tokenizer") if decoded else table

    def check_ids(self, ids: pa.ChunkedArray) -> None:
        """Raises PicoError where the table of uses is about other documents than those with these ids."""
        path = self.tokens / "documents" / self.path.name
        theirs = _read(path, self.group, ["id"], MEND)["id"].to_pylist()
        for row, (own, other) in enumerate(zip(ids.to_pylist(), theirs, strict=True)):
            if own != other:
                raise PicoError(
                    f"{path} is not about the documents that are there: its id is {other}, the document's {own}",
                    where=f"{self.source}, row {self.first + row}",
                    mend=MEND,
                )


class Documents:
    def __init__(self, groups: Sequence[RowGroup]) -> None:
        self.groups = groups
        self._ids = lru_cache(maxsize=4)(lambda number: groups[number].read(["id"])["id"])

    def named(self, number: int, row: int) -> dict[str, Any]:
        """Returns `source`, `row` of its file and `id` of a row of a group."""
        group = self.groups[number]
        return {"source": group.source, "row": group.first + int(row), "id": self._ids(number)[int(row)].as_py()}


def row_groups(documents: Path, tokens: Path) -> list[RowGroup]:
    """Returns all row groups, in the order of sources.json.

    Raises PicoError where the uses do not belong to these documents, or disagree with what was published.
    """
    groups: list[RowGroup] = []
    place = 0
    for entry in read_json(documents / "sources.json"):
        path, name, first = documents / f"{entry['name']}.parquet", entry["name"], 0
        footer = pq.read_metadata(path)
        sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups if footer.num_rows else 0)]
        if sizes:
            _check_sizes(tokens / "documents" / path.name, sizes)
        for group, size in enumerate(sizes):
            uses, of_ids = read_uses(tokens, name, group), "row_tokens" in entry
            groups.append(RowGroup(len(groups), name, entry["domain"], path, group, first, place, uses, tokens, of_ids))
            first, place = first + size, place + size
    _check_provenance(groups, tokens)
    _check_counts(groups, tokens)
    return groups


def domain_counts(documents: Path) -> dict[str, int]:
    """Returns the documents of each domain as they were fetched, from the files' footers alone."""
    counts: dict[str, int] = {}
    for entry in read_json(documents / "sources.json"):
        rows = pq.read_metadata(documents / f"{entry['name']}.parquet").num_rows
        counts[entry["domain"]] = counts.get(entry["domain"], 0) + rows
    return dict(sorted(counts.items()))


def _check_sizes(path: Path, sizes: list[int]) -> None:
    with parquet_named(path, MEND):
        footer = pq.read_metadata(path)
    found = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    if found != sizes:
        raise PicoError(
            f"{path} has {sum(found):,} documents in {len(found)} row groups, data/documents {sum(sizes):,} in "
            f"{len(sizes)}",
            mend=MEND,
        )


def _check_provenance(groups: Sequence[RowGroup], tokens: Path) -> None:
    """Checks that the documents that rows are made of are those whose use says so."""
    for kind, use in (("train-provenance", Use.TRAIN), ("heldout-provenance", Use.HELDOUT)):
        # The last group of a source tells its size.
        named = {group.source: np.zeros(group.first + len(group.uses), bool) for group in groups}
        for path in sorted((tokens / kind).glob("*.parquet")):
            for part in read_groups(path, MEND, ["source", "document_row"]):
                sources, rows = part["source"].to_numpy(), part["document_row"].to_numpy()
                for source in set(sources):
                    own = rows[sources == source]
                    if source not in named or own.max() >= len(named[source]):
                        raise PicoError(f"{path} names documents of {source} that are not there", mend=MEND)
                    named[source][own] = True
        for group in groups:
            own = named[group.source][group.first : group.first + len(group.uses)]
            for row in np.flatnonzero(own != (group.uses == use))[:1]:
                raise PicoError(
                    f"{tokens / kind} and {tokens / 'documents'} disagree on {group.source}, row {group.first + row}: "
                    f"rows hold {'a' if own[row] else 'no'} part of it, and its use is {Use(group.uses[row]).label}",
                    mend=MEND,
                )


def _check_counts(groups: Sequence[RowGroup], tokens: Path) -> None:
    path = tokens / "provenance.json"
    counts: dict[str, np.ndarray] = {}
    for group in groups:
        counts[group.domain] = counts.get(group.domain, 0) + np.bincount(group.uses, minlength=len(Use))
    for domain, own in counts.items():
        entry = read_json(path)["domains"].get(domain, {})
        expected = {
            "documents_read": own.sum(),
            "duplicates_dropped": own[Use.DUPLICATE],
            "sampled_out": own[Use.SAMPLED_OUT],
            "dropped": {use.label: int(own[use]) for use in DROPPED},
            "train_documents": own[Use.TRAIN] + own[Use.TAIL] + own[Use.NOT_REPEATED],
            "heldout_documents": own[Use.HELDOUT] + own[Use.BEYOND_HELDOUT_ROWS],
        }
        for key, value in expected.items():
            if entry.get(key) != value:
                raise PicoError(
                    f"{path} and {tokens / 'documents'} disagree on {domain}: {key} is {entry.get(key)}, and {value} "
                    "by the uses",
                    mend=MEND,
                )


def _read(path: Path, group: int, columns: Sequence[str], mend: str) -> pa.Table:
    with parquet_named(path, mend):
        return pq.ParquetFile(path).read_row_group(group, columns=list(columns))


def _decoded(table: pa.Table, tokenizer: Path) -> pa.Table:
    """The table with `text` and `hash` in place of `input_ids`."""
    pieces, eos = TokenBytes(load_tokenizer(tokenizer)), tokenizer_meta(tokenizer)["eos_id"]
    lists = table["input_ids"].combine_chunks()
    rows = np.split(lists.flatten().to_numpy(), np.cumsum(lists.value_lengths().to_numpy())[:-1])
    # A row may begin or end within a character, which is no fault of the text.
    texts = [spelled(row, pieces, eos, "\n\n").strip("\ufffd") for row in rows]
    table = table.set_column(table.column_names.index("input_ids"), "text", pa.array(texts, pa.string()))
    hashes = [sha256(row.astype("<i4").tobytes()).hexdigest() for row in rows]
    return table.append_column("hash", pa.array(hashes, pa.string()))
