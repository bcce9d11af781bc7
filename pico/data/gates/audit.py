"""The audit of documents: what their gates need to know that no single row group tells.

Two passes over the row groups, each spread over processes. The first gathers what others are compared with: the runs of
words of the held-out documents, and MinHash signatures. The second looks at every document: its own form, the runs of
words that it shares with benchmarks and held-out documents, and its near-duplicates. Results are put together in
reading order, so they are the same for any number of processes.

Memory is bounded: a row group at a time, at most HELDOUT_RUNS runs of held-out words (of more, those whose hash is
divisible by a fitting number: an unbiased sample), and `gates.compared_documents` signatures of documents that are
trained on and as many of those held out (chosen by hash). Every document is compared with these, so a pair of which
neither is among them goes unseen.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pico.config import Gates
from pico.data.gates.comparisons import Documents, Members, exact_duplicates, heldout_overlap, near_duplicate_pairs
from pico.data.gates.contamination import read_benchmarks
from pico.data.gates.fates import HELDOUT, TRAIN, Block
from pico.data.gates.near_duplicates import Reference
from pico.data.gates.ngrams import Index
from pico.data.gates.passes import SAMPLED, Gathered, Looked, Plan, gather, look, lot
from pico.data.gates.profiles import LENGTH_BINS
from pico.data.gates.rules import WORST, Gate, Worst, worst_of
from pico.spread import release, release_memory, spread

HELDOUT_RUNS = 2**22
"""Runs of words of held-out documents that are kept: 32 MiB, and several times that while they are put in order."""

Progress = Callable[[float], None]
"""Told the fraction done, in [0, 1]."""
Details = dict[tuple, tuple[int, list[dict[str, Any]]]]
"""What names a row of a table -> how many documents or examples it is about, and the first of them."""


@dataclass(frozen=True)
class Audit:
    """Tables for the gates, and what the data page shows."""

    documents: Worst
    heldout: Worst
    """Held-out documents: `source`, `row`, `domain`, `overlap` (share of its runs that training documents hold)."""
    domains: pd.DataFrame
    """One row a domain."""
    benchmarks: pd.DataFrame
    duplicates: tuple[int, list[dict[str, Any]]]
    """Used documents that another used document equals, and the first of them."""
    details: dict[str, Details]
    """Gate -> what stands behind the rows of its table."""
    beginnings: dict[str, list[tuple[str, int, str]]]
    """Domain -> (id, bytes, first characters) of documents drawn by hash."""
    profile: dict[str, Any]


def audit(
    blocks: Sequence[Block],
    benchmarks: Path,
    settings: Gates,
    gates: list[Gate],
    heldout_gates: list[Gate],
    scratch: Path,
    progress: Progress = lambda fraction: None,
) -> Audit:
    """Looks at all documents; `scratch` is a folder for what the passes share."""
    used = {fate: sum(int((block.fates == fate).sum()) for block in blocks) for fate in (TRAIN, HELDOUT)}
    fractions = {fate: min(1.0, settings.compared_documents / max(1, count)) for fate, count in used.items()}
    plan = Plan(gates, settings, fractions, scratch)
    gathered, modulus = _gather(blocks, plan, lambda fraction: progress(0.4 * fraction))

    tested = read_benchmarks(benchmarks, settings.ngram_words)
    index = Index.of(np.concatenate([tested.hashes, *(part.runs for part in gathered)]))
    index.save(scratch / "index")
    members = Members(blocks, gathered, scratch / "members.npy")
    none = np.zeros((0, 0), np.uint32)
    gathered = [replace(part, signatures=none) for part in gathered]
    Reference.of(members.signatures).save(scratch / "reference")
    reference = Reference.load(scratch / "reference")
    release_memory()
    looked: list[Any] = [None] * len(blocks)
    beginnings: dict[str, list[tuple[str, int, str]]] = {}
    for done, (number, result) in enumerate(spread(release, [(look, block, plan) for block in blocks]), start=1):
        domain = blocks[number].domain
        drawn = sorted([*beginnings.get(domain, []), *result.beginnings], key=lambda one: (lot(one[0]), one))
        beginnings[domain] = drawn[:SAMPLED]
        looked[number] = _copied(replace(result, beginnings=[]))  # texts are the bulk of it
        progress(0.4 + 0.5 * done / len(blocks))

    documents = Documents(blocks)
    seen = np.zeros(len(index.hashes), bool)
    first: dict[int, tuple[int, int]] = {}
    for block, part in zip(blocks, looked, strict=True):
        for place, row in zip(part.places.tolist(), part.rows.tolist(), strict=True):
            first.setdefault(place, (block.number, row))
        seen[part.places] = True
    heldout, overlap = heldout_overlap(blocks, gathered, index, seen, heldout_gates)
    near = near_duplicate_pairs(blocks, members, reference, looked, settings.near_duplicate_similarity)
    duplicates = exact_duplicates(blocks, documents)
    progress(1.0)

    found = tested.found(index, {place: {"at": at} for place, at in first.items()})
    by_benchmark: Details = {}
    for entry in found:
        key = (entry["benchmark"],)
        count, examples = by_benchmark.get(key, (0, []))
        if count < WORST:
            at = entry.pop("at")
            examples.append({k: v for k, v in entry.items() if k != "text"} | documents.named(*at)
                            | {"text": entry["text"]})  # fmt: skip
        by_benchmark[key] = count + 1, examples
    domains, near_details = _domains(blocks, looked, overlap, near, documents)
    return Audit(
        documents=worst_of([part.worst for part in looked], gates),
        heldout=heldout,
        domains=domains,
        benchmarks=tested.table(index, seen),
        duplicates=duplicates,
        details={"documents.contamination": by_benchmark, **near_details},
        beginnings=beginnings,
        profile={
            "compared_documents": {"train": int((~members.heldout).sum()), "heldout": int(members.heldout.sum())},
            "heldout_runs_sampled_one_in": modulus,
            "domains": _profiles(blocks, looked),
        },
    )


def _gather(blocks: Sequence[Block], plan: Plan, progress: Progress) -> tuple[list[Gathered], int]:
    """The first pass; where there are too many held-out runs, they are thinned out as they come."""
    gathered: list[Any] = [None] * len(blocks)
    modulus, held = 1, 0
    for done, (number, part) in enumerate(spread(release, [(gather, block, plan) for block in blocks]), start=1):
        gathered[number] = _copied(_thinned(part, modulus))
        held += len(gathered[number].runs)
        while held > HELDOUT_RUNS:
            modulus *= 2
            gathered = [part and _thinned(part, modulus) for part in gathered]
            held = sum(len(part.runs) for part in gathered if part)
        progress(done / len(blocks))
    return gathered, modulus


def _copied(result: Any) -> Any:
    """The same in memory of its own. Arrays that Ray gives lie in its store, and one keeps there all that came with it:
    half a GB of texts, at ten GB of text."""
    return deepcopy(result)


def _thinned(part: Gathered, modulus: int) -> Gathered:
    kept = part.runs % np.uint64(modulus) == 0
    return replace(part, runs=part.runs[kept], owners=part.owners[kept])


def _domains(
    blocks: Sequence[Block],
    looked: Sequence[Looked],
    overlap: dict[str, tuple[int, int]],
    near: np.ndarray,
    documents: Documents,
) -> tuple[pd.DataFrame, dict[str, Details]]:
    """One row a domain, and what stands behind its near-duplicates."""
    names = sorted({block.domain for block in blocks})
    codes = np.array([names.index(block.domain) for block in blocks])
    details: dict[str, Details] = {"documents.near_duplicates": {}, "documents.heldout_near_duplicates": {}}
    rows = []
    for code, name in enumerate(names):
        own = [block for block in blocks if block.domain == name]
        sizes = {fate: sum(int((block.fates == fate).sum()) for block in own) for fate in (TRAIN, HELDOUT)}
        entry: dict[str, Any] = {
            "domain": name,
            "used_documents": sizes[TRAIN] + sizes[HELDOUT],
            "train_documents": sizes[TRAIN],
            "heldout_documents": sizes[HELDOUT],
            "mean_bytes": sum(part.bytes for block, part in zip(blocks, looked, strict=True) if block.domain == name)
            / max(1, sizes[TRAIN] + sizes[HELDOUT]),
        }
        here = near[codes[near["number"]] == code] if len(near) else near
        for gate, fate, heldout in (
            ("documents.near_duplicates", TRAIN, False), ("documents.heldout_near_duplicates", HELDOUT, True),
        ):  # fmt: skip
            pairs = here[(here["heldout"] == heldout) & ~here["other_heldout"]]
            _, first = np.unique(pairs[["number", "row"]], return_index=True)
            key = gate.split(".")[1]
            entry[key] = len(first)
            entry[f"{key}_fraction"] = len(first) / max(1, sizes[fate])
            examples = [
                {"domain": name, **documents.named(pair["number"], pair["row"]),
                 "similarity": round(float(pair["similarity"]), 3),
                 **{f"other_{k}": v for k, v in documents.named(pair["other_number"], pair["other_row"]).items()}}
                for pair in pairs[np.sort(first)][:WORST]
            ]  # fmt: skip
            details[gate][(name,)] = len(first), examples
        shared, total = overlap.get(name, (0, 0))
        entry |= {"heldout_runs": total, "overlap": shared / max(1, total)}
        rows.append(entry)
    return pd.DataFrame(rows), details


def _profiles(blocks: Sequence[Block], looked: Sequence[Looked]) -> dict[str, dict[str, Any]]:
    """By domain: `words`, `bytes`, `lengths` (histogram) and `characters` (counts by class, all of them last)."""
    found: dict[str, dict[str, Any]] = {}
    for block, part in zip(blocks, looked, strict=True):
        entry = found.setdefault(
            block.domain, {"words": 0, "bytes": 0, "lengths": np.zeros(LENGTH_BINS, np.int64), "characters": 0}
        )
        entry["words"] += part.words
        entry["bytes"] += part.bytes
        entry["lengths"] = entry["lengths"] + part.lengths
        entry["characters"] = entry["characters"] + part.characters
    return {
        domain: entry | {"lengths": entry["lengths"].tolist(), "characters": entry["characters"].tolist()}
        for domain, entry in sorted(found.items())
    }
