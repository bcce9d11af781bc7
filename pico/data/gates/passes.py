"""The passes over row groups of documents: each a pure function of one, so that any process may do it.

The first gathers what others are compared with, the second looks at every document; see pico/data/gates/audit.py.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pico.config import Gates
from pico.data.gates.fates import HELDOUT, TRAIN, UNUSED, Block
from pico.data.gates.near_duplicates import Reference, signatures
from pico.data.gates.ngrams import SHORTEST, Index, Words, words_of
from pico.data.gates.profiles import character_counts, document_frame, length_histogram
from pico.data.gates.rules import Gate, Worst, worst
from pico.data.tokens.hashing import is_low

SAMPLED, SAMPLED_CHARACTERS = 200, 4000
"""Documents a domain whose beginnings are kept: for fertility, and for reading."""


@dataclass(frozen=True)
class Plan:
    """What every process is told."""

    gates: list[Gate]
    """About single documents."""
    settings: Gates
    fractions: dict[int, float]
    """Fate -> share of its documents that others are compared with."""
    scratch: Path
    """Where the index and the reference lie, in the second pass."""


@dataclass(frozen=True)
class Gathered:
    """The first pass, of one row group."""

    rows: np.ndarray
    """Documents that others are compared with: int64, rows of the block."""
    signatures: np.ndarray
    runs: np.ndarray
    """Hashes of held-out runs, uint64."""
    owners: np.ndarray
    """The row of the block that each lies in, int64."""


@dataclass(frozen=True)
class Looked:
    """The second pass, of one row group."""

    worst: Worst
    lengths: np.ndarray
    characters: np.ndarray
    words: int
    bytes: int
    """Of the used documents."""
    beginnings: list[tuple[str, int, str]]
    """(id, bytes, first characters) of the SAMPLED used documents with the lowest lots."""
    places: np.ndarray
    """Of the runs in the index that training documents hold, sorted."""
    rows: np.ndarray
    """The first row of the block that holds each."""
    pairs: np.ndarray
    """(row of the block, member of the reference) that are near-duplicates: int64 (pairs, 2)."""
    similarity: np.ndarray


def gather(block: Block, plan: Plan) -> Gathered:
    """The first pass over one row group."""
    table = block.read()
    ids = table["id"].to_pylist()
    rows = np.array(
        [row for row in np.flatnonzero(block.fates != UNUSED) if _chosen(ids[row], plan.fractions[block.fates[row]])],
        np.int64,
    )
    heldout = np.flatnonzero(block.fates == HELDOUT)
    n = plan.settings.ngram_words
    _, runs, owners = next(words_of(table["text"].take(pa.array(heldout))).runs([n]))
    return Gathered(rows, signatures(words_of(table["text"].take(pa.array(rows)))), runs, heldout[owners])


def look(block: Block, plan: Plan) -> Looked:
    """The second pass over one row group."""
    table = block.read()
    frame = document_frame(table, block.first, block.fates)
    used = np.flatnonzero(block.fates != UNUSED)
    texts = table["text"].take(pa.array(used))
    words = words_of(texts)
    ids = frame["id"].to_numpy()
    lowest = sorted(used.tolist(), key=lambda row: lot(ids[row]))[:SAMPLED]
    beginnings = [
        (str(ids[row]), int(frame["bytes"][row]), table["text"][row].as_py()[:SAMPLED_CHARACTERS])
        for row in lowest
        if frame["bytes"].notna()[row]
    ]
    places, rows = _shared_runs(words, used, block.fates[used] == TRAIN, plan)
    others = np.array([not _chosen(ids[row], plan.fractions[block.fates[row]]) for row in used], bool)
    which, member, similarity = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    if others.any():
        own = signatures(words_of(texts.filter(pa.array(others))))
        reference = Reference.load(plan.scratch / "reference")
        which, member, similarity = reference.pairs(own, plan.settings.near_duplicate_similarity)
        which = used[others][which]
    return Looked(
        worst(frame, plan.gates),
        length_histogram(frame["bytes"].dropna().to_numpy()),
        character_counts(texts),
        len(words.hashes),
        int(frame["bytes"].sum()),
        beginnings,
        places,
        rows,
        np.stack([which, member], axis=1),
        similarity,
    )


def used_ids(block: Block, part: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the ids of the used documents, of those that fall to this part (uint64), and their rows."""
    used = np.flatnonzero(block.fates != UNUSED)
    ids = block.read(["id"])["id"].take(pa.array(used)).to_pylist()
    digests = b"".join(hashlib.blake2b(str(identity).encode(), digest_size=8).digest() for identity in ids)
    hashes = np.frombuffer(digests, "<u8").astype(np.uint64)
    own = hashes % np.uint64(parts) == part
    return hashes[own], used[own]


def _chosen(identity: str | None, fraction: float) -> bool:
    """Whether others are compared with a document; by digits of its hash that decide nothing else."""
    return fraction >= 1 or is_low(lot(identity), fraction)


def lot(identity: str | None) -> str:
    """Digits of a document's hash that decide nothing else: not whether it is held out, nor whether it is used."""
    return str(identity)[26:39]


def _shared_runs(words: Words, used: np.ndarray, train: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """The places in the index of the runs that training documents hold, and the first row with each."""
    index = Index.load(plan.scratch / "index")
    places, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for first, part in words.parts():
        for _, hashes, owners in part.runs(range(SHORTEST, plan.settings.ngram_words + 1)):
            at, place = index.find(hashes)
            own = train[first + owners[at]]
            places.append(place[own])
            rows.append(used[first + owners[at[own]]])
    found, row = np.concatenate(places), np.concatenate(rows)
    order = np.lexsort((row, found))
    distinct, at = np.unique(found[order], return_index=True)
    return distinct, row[order][at]
