"""What documents have in common: shared runs of words, near-duplicates, equal texts; put together from the passes."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pico.data.gates.fates import HELDOUT, UNUSED, Block
from pico.data.gates.near_duplicates import PERMUTATIONS, Reference
from pico.data.gates.ngrams import Index
from pico.data.gates.passes import Gathered, Looked, used_ids
from pico.data.gates.rules import WORST, Gate, Worst, worst, worst_of
from pico.spread import spread

LEAST_RUNS = 13
"""Of a held-out document whose share is looked at by itself: one sentence of a short one is a large share."""
IDS_AT_ONCE = 2**23
"""Documents among which exact duplicates are sought at a time: 64 MiB, and three times that to sort them."""
PAIR = [
    ("number", np.int64), ("row", np.int64), ("heldout", bool),
    ("other_number", np.int64), ("other_row", np.int64), ("other_heldout", bool), ("similarity", float),
]  # fmt: skip
"""Of a pair of near-duplicates: the block and row of each, whether it is held out, and how similar they are."""


class Members:
    """The documents of the reference, held-out ones first: which they are, and their signatures, in a file."""

    def __init__(self, blocks: Sequence[Block], gathered: Sequence[Gathered], path: Path) -> None:
        number = np.concatenate([np.full(len(p.rows), b.number) for b, p in zip(blocks, gathered, strict=True)])
        row = np.concatenate([part.rows for part in gathered])
        fates = [block.fates[part.rows] for block, part in zip(blocks, gathered, strict=True)]
        heldout = np.concatenate(fates) == HELDOUT
        order = np.argsort(~heldout, kind="stable")
        self.number, self.row, self.heldout = number[order], row[order], heldout[order]
        self.signatures = np.lib.format.open_memmap(path, "w+", np.uint32, (len(order), PERMUTATIONS))
        """uint32 (members, PERMUTATIONS)"""
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        done = 0
        for part in gathered:
            self.signatures[place[done : done + len(part.rows)]] = part.signatures
            done += len(part.rows)


class Documents:
    """Names documents by source, row and id."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks
        self._ids = lru_cache(maxsize=4)(lambda number: blocks[number].read(["id"])["id"])

    def named(self, number: int, row: int) -> dict[str, Any]:
        """`source`, `row` of its file, `id`, of a row of a block."""
        block = self.blocks[number]
        return {"source": block.source, "row": block.first + int(row), "id": self._ids(number)[int(row)].as_py()}


def heldout_overlap(
    blocks: Sequence[Block], gathered: Sequence[Gathered], index: Index, seen: np.ndarray, gates: list[Gate]
) -> tuple[Worst, dict[str, tuple[int, int]]]:
    """Held-out documents by the share of their runs that training documents hold; and by domain (shared, all) runs."""
    parts: list[Worst] = []
    domains: dict[str, tuple[int, int]] = {}
    for block, part in zip(blocks, gathered, strict=True):
        shared = seen[np.searchsorted(index.hashes, part.runs)] if len(part.runs) else np.zeros(0, bool)
        rows, which = np.unique(part.owners, return_inverse=True)
        runs = np.bincount(which, minlength=len(rows))
        overlap = np.bincount(which, weights=shared, minlength=len(rows)) / np.maximum(runs, 1)
        rows, overlap = rows[runs >= LEAST_RUNS], overlap[runs >= LEAST_RUNS]
        table = pd.DataFrame({"source": block.source, "row": block.first + rows, "domain": block.domain,
                              "overlap": overlap})  # fmt: skip
        parts.append(worst(table, gates))
        before = domains.get(block.domain, (0, 0))
        domains[block.domain] = before[0] + int(shared.sum()), before[1] + len(shared)
    return worst_of(parts, gates), domains


def near_duplicate_pairs(
    blocks: Sequence[Block], members: Members, reference: Reference, looked: Sequence[Looked], similarity: float
) -> np.ndarray:
    """Pairs of near-duplicates, each in both directions: a sorted structured array."""
    which, member, alike = reference.pairs(members.signatures, similarity)
    other = which != member

    def pairs(number: Any, row: Any, heldout: Any, other: np.ndarray, alike: np.ndarray) -> np.ndarray:
        found = np.zeros(len(other), PAIR)
        columns = (number, row, heldout, members.number[other], members.row[other], members.heldout[other], alike)
        for (name, _), values in zip(PAIR, columns, strict=True):
            found[name] = values
        return found

    which, member, alike = which[other], member[other], alike[other]
    found = [pairs(members.number[which], members.row[which], members.heldout[which], member, alike)]
    for block, part in zip(blocks, looked, strict=True):
        rows, own = part.pairs[:, 0], part.pairs[:, 1]
        one = pairs(block.number, rows, block.fates[rows] == HELDOUT, own, part.similarity)
        back = one.copy()
        for name in ("number", "row", "heldout"):
            back[name], back[f"other_{name}"] = one[f"other_{name}"], one[name]
        found += [one, back]
    return np.sort(np.concatenate(found), order=["number", "row", "other_number", "other_row"])


def exact_duplicates(blocks: Sequence[Block], documents: Documents) -> tuple[int, list[dict[str, Any]]]:
    """How many used documents have the id of an earlier used one, and the first of them."""
    parts = -(-sum(int((block.fates != UNUSED).sum()) for block in blocks) // IDS_AT_ONCE) or 1
    repeated: list[tuple[int, int]] = []
    total = 0
    for part in range(parts):
        own: list[Any] = [None] * len(blocks)
        for number, result in spread(used_ids, [(block, part, parts) for block in blocks]):
            own[number] = result
        hashes = np.concatenate([hashes for hashes, _ in own])
        again = np.ones(len(hashes), bool)
        again[np.unique(hashes, return_index=True)[1]] = False
        total += int(again.sum())
        ends = np.cumsum([len(rows) for _, rows in own])
        for place in np.flatnonzero(again)[:WORST].tolist():
            number = int(np.searchsorted(ends, place, side="right"))
            repeated.append((number, int(own[number][1][place - (ends[number] - len(own[number][1]))])))
    return total, [documents.named(*at) for at in sorted(repeated)[:WORST]]
