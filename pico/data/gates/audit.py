"""The audit of documents: what their gates need to know that no single row group tells.

Two passes over the row groups, each a pure function of one and spread over processes. The first gathers what others are
compared with: the runs of words of the held-out documents, and MinHash signatures. The second measures every document:
its own form, the runs of words that it shares with benchmarks and held-out documents, and its near-duplicates. Results
are put together in reading order, so they are the same for any number of processes.

Memory is bounded: a row group at a time, at most HELDOUT_RUNS runs of held-out words (of more, those whose hash is
divisible by a fitting number: an unbiased sample), and `gates.compared_documents` signatures of documents that are
trained on and as many of those held out (chosen by hash). Every document is compared with these, so a pair of which
neither is among them goes unseen. The measures of documents go to a table on disk as they come.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pico.config import Gates
from pico.data.gates.contamination import read_benchmarks
from pico.data.gates.documents import Documents, RowGroup
from pico.data.gates.duplicates import Members, Reference, exact_duplicates, minhash, near_duplicate_pairs
from pico.data.gates.ngrams import SHORTEST, Index, Words, normalized_words
from pico.data.gates.profiles import character_counts, length_histogram, measure_documents
from pico.data.tokens.documents import Use
from pico.data.tokens.hashing import is_low
from pico.expectations.evaluation import SHOWN, Tables
from pico.spread import release, release_memory, spread

HELDOUT_RUNS = 2**22
"""Runs of words of held-out documents that are kept: 32 MiB, and several times that while they are put in order."""
LEAST_RUNS = 13
"""Runs of a held-out document whose share is looked at by itself: one sentence of a short one is a large share."""
SAMPLED, SAMPLED_CHARACTERS = 200, 4000
"""Documents a domain whose beginnings are kept: for fertility, and for reading."""

Progress = Callable[[float], None]
"""Called with the fraction done, in [0, 1]."""
Details = dict[tuple, tuple[int, list[dict[str, Any]]]]
"""The key of a table's row -> how many documents or examples it is about, and the first of them."""


@dataclass(frozen=True)
class Audit:
    """Facts that gates and the data page need, beside the tables `documents` and `heldout`."""

    domains: pd.DataFrame
    benchmarks: pd.DataFrame
    duplicates: tuple[int, list[dict[str, Any]]]
    """The number of used documents that equal an earlier one, and the first of them."""
    details: dict[str, Details]
    """Gate -> what stands behind the rows of its table."""
    beginnings: dict[str, list[tuple[str, int, str]]]
    """Domain -> (id, bytes, first characters) of documents drawn by hash."""
    profile: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Settings of both passes."""

    settings: Gates
    fractions: dict[Use, float]
    """Use -> share of its documents that others are compared with."""
    scratch: Path
    """The folder of the index and the reference, in the second pass."""


@dataclass(frozen=True)
class Gathered:
    """The result of the first pass over a row group."""

    rows: np.ndarray
    """Documents that others are compared with: int64, rows of the group."""
    signatures: np.ndarray
    runs: np.ndarray
    """Hashes of held-out runs, uint64."""
    owners: np.ndarray
    """The row of the group that each lies in, int64."""


@dataclass(frozen=True)
class Measured:
    """The result of the second pass over a row group."""

    table: pd.DataFrame | None
    """One row a document, see `measure_documents`; None once it is written."""
    lengths: np.ndarray
    characters: np.ndarray
    words: int
    bytes: int
    """Bytes of the used documents."""
    beginnings: list[tuple[str, int, str]]
    """(id, bytes, first characters) of the SAMPLED used documents that come first by `sampling_key`."""
    places: np.ndarray
    """Places in the index of the runs that training documents hold, sorted."""
    rows: np.ndarray
    """The first row of the group that holds each."""
    pairs: np.ndarray
    """(row of the group, member of the reference) that are near-duplicates: int64 (pairs, 2)."""
    similarity: np.ndarray


def audit(
    groups: Sequence[RowGroup],
    benchmarks: Path,
    settings: Gates,
    tables: Tables,
    scratch: Path,
    progress: Progress = lambda fraction: None,
) -> Audit:
    """Measures all documents, and fills the tables `documents` and `heldout`.

    `heldout` has one row a held-out document that is long enough: `source`, `row`, `domain`, and `overlap`, the share
    of its runs that training documents hold. scratch: a folder for what the passes share.
    """
    counts = {use: sum(group.count(use) for group in groups) for use in (Use.TRAIN, Use.HELDOUT)}
    fractions = {use: min(1.0, settings.compared_documents / max(1, count)) for use, count in counts.items()}
    plan = Plan(settings, fractions, scratch)
    gathered, modulus = _gather_all(groups, plan, lambda fraction: progress(0.4 * fraction))

    tested = read_benchmarks(benchmarks, settings.ngram_words)
    index = Index.of(np.concatenate([tested.hashes, *(part.runs for part in gathered)]))
    index.save(scratch / "index")
    signatures = [part.signatures for part in gathered]
    members = Members(groups, [part.rows for part in gathered], signatures, scratch / "members.npy")
    gathered = [replace(part, signatures=np.zeros((0, 0), np.uint32)) for part in gathered]
    del signatures
    Reference.of(members.signatures).save(scratch / "reference")
    reference = Reference.load(scratch / "reference")
    release_memory()
    measured: list[Any] = [None] * len(groups)
    beginnings: dict[str, list[tuple[str, int, str]]] = {}
    for done, (number, result) in enumerate(spread(release, [(measure, group, plan) for group in groups]), start=1):
        domain = groups[number].domain
        drawn = sorted([*beginnings.get(domain, []), *result.beginnings], key=lambda one: (sampling_key(one[0]), one))
        beginnings[domain] = drawn[:SAMPLED]
        tables.append("documents", result.table, first=groups[number].place + 1)
        measured[number] = deepcopy(replace(result, table=None, beginnings=[]))  # texts are the bulk of it
        progress(0.4 + 0.5 * done / len(groups))

    documents = Documents(groups)
    seen = np.zeros(len(index.hashes), bool)
    first: dict[int, tuple[int, int]] = {}
    for group, part in zip(groups, measured, strict=True):
        for place, row in zip(part.places.tolist(), part.rows.tolist(), strict=True):
            first.setdefault(place, (group.number, row))
        seen[part.places] = True
    overlap = _heldout_overlap(groups, gathered, index, seen, tables)
    others = [(part.pairs, part.similarity) for part in measured]
    near = near_duplicate_pairs(groups, members, reference, others, settings.near_duplicate_similarity)
    duplicates = exact_duplicates(groups, SHOWN)
    progress(1.0)

    found = tested.found(index, {place: {"at": at} for place, at in first.items()})
    by_benchmark: Details = {}
    for entry in found:
        key = (entry["benchmark"],)
        count, examples = by_benchmark.get(key, (0, []))
        if count < SHOWN:
            at = entry.pop("at")
            examples.append({k: v for k, v in entry.items() if k != "text"} | documents.named(*at)
                            | {"text": entry["text"]})  # fmt: skip
        by_benchmark[key] = count + 1, examples
    domains, near_details = _domains(groups, measured, overlap, near, documents)
    return Audit(
        domains=domains,
        benchmarks=tested.table(index, seen),
        duplicates=duplicates,
        details={"documents.contamination": by_benchmark, **near_details},
        beginnings=beginnings,
        profile={
            "compared_documents": {"train": int((~members.heldout).sum()), "heldout": int(members.heldout.sum())},
            "heldout_runs_sampled_one_in": modulus,
            "domains": _profiles(groups, measured),
        },
    )


def gather(group: RowGroup, plan: Plan) -> Gathered:
    """Does the first pass over one row group."""
    table = group.read()
    group.check_ids(table["id"])
    ids = table["id"].to_pylist()
    rows = np.array([row for row in group.used() if _chosen(ids[row], plan.fractions[group.uses[row]])], np.int64)
    heldout = np.flatnonzero(group.uses == Use.HELDOUT)
    n = plan.settings.ngram_words
    _, runs, owners = next(normalized_words(table["text"].take(pa.array(heldout))).runs([n]))
    return Gathered(rows, minhash(normalized_words(table["text"].take(pa.array(rows)))), runs, heldout[owners])


def measure(group: RowGroup, plan: Plan) -> Measured:
    """Does the second pass over one row group."""
    table = group.read()
    frame = measure_documents(table, group.first, group.uses)
    used = group.used()
    texts = table["text"].take(pa.array(used))
    words = normalized_words(texts)
    ids = frame["id"].to_numpy()
    lowest = sorted(used.tolist(), key=lambda row: sampling_key(ids[row]))[:SAMPLED]
    beginnings = [
        (str(ids[row]), int(frame["bytes"][row]), table["text"][row].as_py()[:SAMPLED_CHARACTERS])
        for row in lowest
        if frame["bytes"].notna()[row]
    ]
    places, rows = _shared_runs(words, used, group.uses[used] == Use.TRAIN, plan)
    others = np.array([not _chosen(ids[row], plan.fractions[group.uses[row]]) for row in used], bool)
    which, member, similarity = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    if others.any():
        own = minhash(normalized_words(texts.filter(pa.array(others))))
        reference = Reference.load(plan.scratch / "reference")
        which, member, similarity = reference.pairs(own, plan.settings.near_duplicate_similarity)
        which = used[others][which]
    return Measured(
        frame,
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


def _chosen(identity: str | None, fraction: float) -> bool:
    """Tells whether others are compared with a document."""
    return fraction >= 1 or is_low(sampling_key(identity), fraction)


def sampling_key(identity: str | None) -> str:
    """Returns digits of a document's hash that decide nothing else: not its side, nor whether it is used."""
    return str(identity)[26:39]


def _shared_runs(words: Words, used: np.ndarray, train: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places in the index of the runs that training documents hold, and the first row with each."""
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


def _gather_all(groups: Sequence[RowGroup], plan: Plan, progress: Progress) -> tuple[list[Gathered], int]:
    """Does the first pass; where there are too many held-out runs, they are thinned out as they come."""
    gathered: list[Any] = [None] * len(groups)
    modulus, held = 1, 0
    for done, (number, part) in enumerate(spread(release, [(gather, group, plan) for group in groups]), start=1):
        # Arrays that Ray gives lie in its store, and one keeps there all that came with it: half a GB of texts, at ten
        # GB of text.
        gathered[number] = deepcopy(_thinned(part, modulus))
        held += len(gathered[number].runs)
        while held > HELDOUT_RUNS:
            modulus *= 2
            gathered = [part and _thinned(part, modulus) for part in gathered]
            held = sum(len(part.runs) for part in gathered if part)
        progress(done / len(groups))
    return gathered, modulus


def _thinned(part: Gathered, modulus: int) -> Gathered:
    kept = part.runs % np.uint64(modulus) == 0
    return replace(part, runs=part.runs[kept], owners=part.owners[kept])


def _heldout_overlap(
    groups: Sequence[RowGroup], gathered: Sequence[Gathered], index: Index, seen: np.ndarray, tables: Tables
) -> dict[str, tuple[int, int]]:
    """Fills the table `heldout`; returns (shared, all) held-out runs by domain."""
    domains: dict[str, tuple[int, int]] = {}
    for group, part in zip(groups, gathered, strict=True):
        shared = seen[np.searchsorted(index.hashes, part.runs)] if len(part.runs) else np.zeros(0, bool)
        rows, which = np.unique(part.owners, return_inverse=True)
        runs = np.bincount(which, minlength=len(rows))
        overlap = np.bincount(which, weights=shared, minlength=len(rows)) / np.maximum(runs, 1)
        rows, overlap = rows[runs >= LEAST_RUNS], overlap[runs >= LEAST_RUNS]
        columns = {"source": group.source, "row": group.first + rows, "domain": group.domain, "overlap": overlap}
        tables.append("heldout", pd.DataFrame(columns))
        before = domains.get(group.domain, (0, 0))
        domains[group.domain] = before[0] + int(shared.sum()), before[1] + len(shared)
    return domains


def _domains(
    groups: Sequence[RowGroup],
    measured: Sequence[Measured],
    overlap: dict[str, tuple[int, int]],
    near: np.ndarray,
    documents: Documents,
) -> tuple[pd.DataFrame, dict[str, Details]]:
    """Returns one row a domain, and what stands behind its near-duplicates."""
    names = sorted({group.domain for group in groups})
    codes = np.array([names.index(group.domain) for group in groups])
    details: dict[str, Details] = {"documents.near_duplicates": {}, "documents.heldout_near_duplicates": {}}
    rows = []
    for code, name in enumerate(names):
        own = [group for group in groups if group.domain == name]
        train, held = (sum(group.count(use) for group in own) for use in (Use.TRAIN, Use.HELDOUT))
        entry: dict[str, Any] = {
            "domain": name,
            "used_documents": train + held,
            "train_documents": train,
            "heldout_documents": held,
            "mean_bytes": sum(part.bytes for group, part in zip(groups, measured, strict=True) if group.domain == name)
            / max(1, train + held),
        }
        here = near[codes[near["number"]] == code] if len(near) else near
        for gate, size, heldout in (
            ("documents.near_duplicates", train, False), ("documents.heldout_near_duplicates", held, True),
        ):  # fmt: skip
            pairs = here[(here["heldout"] == heldout) & ~here["other_heldout"]]
            _, first = np.unique(pairs[["number", "row"]], return_index=True)
            key = gate.split(".")[1]
            entry[key] = len(first)
            entry[f"{key}_fraction"] = len(first) / max(1, size)
            examples = [
                {"domain": name, **documents.named(pair["number"], pair["row"]),
                 "similarity": round(float(pair["similarity"]), 3),
                 **{f"other_{k}": v for k, v in documents.named(pair["other_number"], pair["other_row"]).items()}}
                for pair in pairs[np.sort(first)][:SHOWN]
            ]  # fmt: skip
            details[gate][(name,)] = len(first), examples
        shared, total = overlap.get(name, (0, 0))
        entry |= {"heldout_runs": total, "overlap": shared / max(1, total)}
        rows.append(entry)
    return pd.DataFrame(rows), details


def _profiles(groups: Sequence[RowGroup], measured: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    """Returns, by domain, `words`, `bytes`, `lengths` (histogram) and `characters` (counts by class, all last)."""
    found: dict[str, dict[str, Any]] = {}
    for group, part in zip(groups, measured, strict=True):
        entry = found.setdefault(group.domain, dict.fromkeys(("words", "bytes", "lengths", "characters"), 0))
        for name in entry:
            entry[name] = entry[name] + getattr(part, name)
    return {
        domain: entry | {"lengths": entry["lengths"].tolist(), "characters": entry["characters"].tolist()}
        for domain, entry in sorted(found.items())
    }
