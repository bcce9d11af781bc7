"""What became of each document of `data/documents/`: trained on, held out, or not used; by row group."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pico.data.survey import survey
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

    def read(self, columns: Sequence[str] = ("id", "source", "domain", "text")) -> pa.Table:
        """Its documents; an unreadable file is a PicoError that names it."""
        try:
            return pq.ParquetFile(self.path).read_row_group(self.group, columns=list(columns))
        except (pa.ArrowException, OSError) as error:
            raise PicoError(f"{self.path} cannot be read as Parquet: {error}", mend="run: dvc repro fetch") from error


def document_blocks(documents: Path, heldout_fraction: float, max_domain_bytes: int | None) -> list[Block]:
    """All row groups, in the order of sources.json, with the fates that stage `prepare` gave their documents."""
    blocks: list[Block] = []
    for part in survey(documents, heldout_fraction, max_domain_bytes):
        fates = np.where(part.kept, np.where(part.heldout, HELDOUT, TRAIN), UNUSED).astype(np.uint8)
        starts = [0, *part.group_ends[:-1].tolist()]
        for group, (start, end) in enumerate(zip(starts, part.group_ends.tolist(), strict=True)):
            blocks.append(Block(len(blocks), part.source, part.domain, part.path, group, start, fates[start:end]))
    return blocks


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
