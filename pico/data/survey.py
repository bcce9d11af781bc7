"""What is known of the documents before they become tokens: which are distinct, sampled, held out; and their texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pico.data.heldout import held_out
from pico.errors import PicoError
from pico.files import read_json


@dataclass
class Documents:
    """What is known of the documents of one source, in reading order; their texts stay in the file."""

    source: str
    domain: str
    path: Path
    ids: np.ndarray
    """Of str objects."""
    n_bytes: np.ndarray
    """UTF-8 bytes of each, int64."""
    distinct: np.ndarray
    """Which are the first of their text over all sources, bool."""
    kept: np.ndarray
    """Which of those are within the domain's share, and so become tokens, bool."""
    heldout: np.ndarray
    """Which are held out (among those kept), bool."""
    group_ends: np.ndarray = field(repr=False)
    """The end of each row group of the file, as a document number."""

    @property
    def train(self) -> np.ndarray:
        """Which are trained on, bool."""
        return self.kept & ~self.heldout


def survey(documents: Path, heldout_fraction: float, max_domain_bytes: int | None = None) -> list[Documents]:
    """Reads ids and lengths of all documents, in the order of sources.json, and decides what each is for.

    Of documents with the same text the first is kept; the rest are dropped. Of a domain with more than
    `max_domain_bytes` of text a random sample of documents is kept.
    """
    seen: set[str] = set()
    surveyed = [_survey_source(documents, entry, seen) for entry in read_json(documents / "sources.json")]
    for domain in sorted({documents.domain for documents in surveyed}):
        parts = [part for part in surveyed if part.domain == domain]
        if max_domain_bytes is not None:
            _sample(parts, max_domain_bytes)
        kept = [identity for part in parts for identity, keep in zip(part.ids, part.kept, strict=True) if keep]
        if len(kept) < 2:
            raise PicoError(
                f"domain {domain!r} has {len(kept)} documents after exact deduplication and sampling; "
                "it needs at least 2, one to train on and one to hold out",
                where=f"{documents}: {', '.join(part.path.name for part in parts)}",
                mend="give it more documents (cut a long one into files), raise packing.max_domain_bytes, "
                "or take it out of corpus.sources",
            )
        chosen, start = held_out(kept, heldout_fraction), 0
        if chosen.all():
            raise PicoError(
                f"all {len(kept)} documents of domain {domain!r} are held out: none is left to train on",
                where=f"params.yaml: packing.heldout_fraction = {heldout_fraction}",
                mend="lower packing.heldout_fraction, or give the domain more documents",
            )
        for part in parts:
            end = start + int(part.kept.sum())
            part.heldout[part.kept] = chosen[start:end]
            start = end
    return surveyed


def sample_texts(surveyed: Sequence[Documents], sample_bytes: int) -> list[str]:
    """Training texts of `sample_bytes` in all, each domain's share that of its bytes.

    Within a domain the lowest ids come first: hashes, so a random sample, and the same whatever the order of sources.
    """
    total = sum(int(part.n_bytes[part.train].sum()) for part in surveyed)
    chosen: dict[int, dict[int, int]] = {number: {} for number in range(len(surveyed))}  # part -> document -> bytes
    for domain in sorted({part.domain for part in surveyed}):
        candidates = [
            (part.ids[document], number, int(document))
            for number, part in enumerate(surveyed)
            if part.domain == domain
            for document in np.flatnonzero(part.train)
        ]
        candidates.sort()
        domain_bytes = sum(int(surveyed[number].n_bytes[document]) for _, number, document in candidates)
        budget = -(-sample_bytes * domain_bytes // total) if total else 0
        for _, number, document in candidates:
            if budget <= 0:
                break
            size = min(budget, int(surveyed[number].n_bytes[document]))
            chosen[number][document] = size
            budget -= size
    texts = []
    for number, part in enumerate(surveyed):
        wanted = sorted(chosen[number])
        for document, text in zip(wanted, _texts(part, np.asarray(wanted, np.int64)), strict=True):
            texts.append(text.encode()[: chosen[number][document]].decode(errors="ignore"))
    return texts


def _sample(parts: Sequence[Documents], max_bytes: int) -> None:
    """Keeps documents of one domain up to `max_bytes` of text, in the order of their hashes' last digits.

    The last, because the first digits decide what is held out: the two choices are independent.
    """
    order = sorted(
        (identity[::-1], number, document)
        for number, part in enumerate(parts)
        for document, identity in enumerate(part.ids)
        if part.distinct[document]
    )
    total = 0
    for _, number, document in order:
        total += int(parts[number].n_bytes[document])
        parts[number].kept[document] = total <= max_bytes


def _survey_source(documents: Path, entry: dict[str, Any], seen: set[str]) -> Documents:
    path = documents / f"{entry['name']}.parquet"
    try:
        file = pq.ParquetFile(path)
        columns = ["id", "text"]  # `select` too, because pyarrow passes over a column that is not there
        tables = [file.read_row_group(group, columns).select(columns) for group in range(file.num_row_groups)]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise PicoError(f"the documents of source {entry['name']!r} cannot be read: {error}", where=str(path),
                        mend="run: dvc repro fetch") from error  # fmt: skip
    ids: list[str] = []
    sizes = [np.zeros(0, np.int64)]
    for table in tables:
        ids += table["id"].to_pylist()
        sizes.append(pc.binary_length(table["text"]).to_numpy().astype(np.int64))
    distinct = np.zeros(len(ids), bool)
    for number, identity in enumerate(ids):
        if identity not in seen:
            seen.add(identity)
            distinct[number] = True
    return Documents(
        source=entry["name"],
        domain=entry["domain"],
        path=path,
        ids=np.array(ids, dtype=object),
        n_bytes=np.concatenate(sizes),
        distinct=distinct,
        kept=distinct.copy(),
        heldout=np.zeros(len(ids), bool),
        group_ends=np.cumsum([table.num_rows for table in tables], dtype=np.int64),
    )


def _texts(part: Documents, wanted: np.ndarray) -> list[str]:
    """The texts of these documents (ascending numbers); row groups that hold none of them are not read."""
    texts: list[str] = []
    file, start = pq.ParquetFile(part.path), 0
    for group, end in enumerate(part.group_ends.tolist()):
        here = wanted[(wanted >= start) & (wanted < end)] - start
        if len(here):
            column = file.read_row_group(group, columns=["text"])["text"]
            texts += column.take(pa.array(here, pa.int64())).to_pylist()
        start = end
    return texts
