"""Duplicates for the gates: documents of equal text, and near-duplicates by MinHash.

Every document is compared with a reference set. MinHash (Broder 1997) of the runs of SHINGLE normalised words, by
`rensa`; candidates by banding (locality-sensitive hashing), then the share of equal entries of the signatures, an
unbiased estimate of the Jaccard similarity with a standard error of sqrt(J (1 - J) / 120), 0.037 at 0.8. Banding misses
a pair of similarity 0.8 once in 14,000 times.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pico.data.gates.documents import Documents, RowGroup
from pico.data.gates.ngrams import Words, load_arrays, save_arrays, word_hashes
from pico.data.tokens import hashing
from pico.data.tokens.documents import Use
from pico.spread import spread

SHINGLE = 5
"""Words of a shingle; documents of fewer words, greetings and headings, are not compared."""
BANDS, BAND_ROWS = 24, 5
PERMUTATIONS = BANDS * BAND_ROWS
SEED = 42
MOST = 256
"""Members of one bucket that a document is compared with: a bucket may hold half the corpus."""
CANDIDATES = 2**14
"""Pairs whose signatures are compared at a time: 16 MB."""
IDS_AT_ONCE = 2**23
"""Documents among which exact duplicates are sought at a time: 64 MiB, and three times that to sort them."""
PAIR = [
    ("number", np.int64), ("row", np.int64), ("heldout", bool),
    ("other_number", np.int64), ("other_row", np.int64), ("other_heldout", bool), ("similarity", float),
]  # fmt: skip
"""A pair of near-duplicates: the row group and row of each, whether it is held out, and how similar they are."""


def minhash(words: Words) -> np.ndarray:
    """Returns the MinHash signature of each text: uint32 (texts, PERMUTATIONS). A text without a shingle has zeros."""
    found = np.zeros((len(words.counts), PERMUTATIONS), np.uint32)
    for first, part in words.parts():
        _, shingles, owners = next(part.runs([SHINGLE]))
        counts = np.bincount(owners, minlength=len(part.counts))
        own = hashing.minhash(shingles, counts, PERMUTATIONS, SEED)
        found[first : first + len(counts)] = np.where(counts[:, None] > 0, own, 0)
    return found


class Reference:
    """Documents that others are compared with: their signatures, and for each band their keys in order."""

    def __init__(self, members: np.ndarray, keys: np.ndarray, order: np.ndarray) -> None:
        self.members = members
        """uint32 (members, PERMUTATIONS)"""
        self._keys, self._order = keys, order

    @classmethod
    def of(cls, members: np.ndarray) -> "Reference":
        """Makes one from signatures. Of a bucket with more than MOST members, the first are compared."""
        keys = hashing.band_keys(members, BANDS, BAND_ROWS)
        order = np.empty(keys.shape, np.int32)
        for band, own in enumerate(keys):
            order[band] = np.argsort(own, kind="stable")
            own[:] = own[order[band]]
        return cls(members, keys, order)

    def pairs(self, others: np.ndarray, similarity: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (place in `others`, member, estimated similarity) of all pairs at least so similar, sorted."""
        found = [np.zeros((0, 2), np.int64)]
        without = ~others.any(axis=1)
        bands = hashing.band_keys(others, BANDS, BAND_ROWS)
        for keys, own, order in zip(bands, self._keys, self._order, strict=True):
            first = np.searchsorted(own, keys, side="left")
            count = np.minimum(np.searchsorted(own, keys, side="right") - first, MOST)
            count[without] = 0
            which = np.repeat(np.arange(len(others)), count)
            place = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
            candidates = np.stack([which, order[place]], axis=1)
            found.append(candidates[self._similarity(others, candidates) >= similarity])
        pairs = np.unique(np.concatenate(found), axis=0)
        return pairs[:, 0], pairs[:, 1], self._similarity(others, pairs)

    def _similarity(self, others: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        alike = np.zeros(len(pairs))
        for start in range(0, len(pairs), CANDIDATES):
            part = pairs[start : start + CANDIDATES]
            alike[start : start + CANDIDATES] = (others[part[:, 0]] == self.members[part[:, 1]]).mean(axis=1)
        return alike

    def save(self, folder: Path) -> None:
        """Writes it to a folder, from where processes map it into memory."""
        save_arrays(folder, members=self.members, keys=self._keys, order=self._order)

    @classmethod
    def load(cls, folder: Path) -> "Reference":
        """Opens what `save` wrote; the pages are read as they are needed."""
        return cls(*load_arrays(folder, "members", "keys", "order"))


class Members:
    """The documents of the reference, held-out ones first, and their signatures, in a file.

    rows, signatures: those of each row group.
    """

    def __init__(
        self, groups: Sequence[RowGroup], rows: Sequence[np.ndarray], signatures: Sequence[np.ndarray], path: Path
    ) -> None:
        number = np.concatenate([np.full(len(own), group.number) for group, own in zip(groups, rows, strict=True)])
        row = np.concatenate(rows)
        uses = np.concatenate([group.uses[own] for group, own in zip(groups, rows, strict=True)])
        heldout = uses == Use.HELDOUT
        order = np.argsort(~heldout, kind="stable")
        self.number, self.row, self.heldout = number[order], row[order], heldout[order]
        self.signatures = np.lib.format.open_memmap(path, "w+", np.uint32, (len(order), PERMUTATIONS))
        """uint32 (members, PERMUTATIONS)"""
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        done = 0
        for own in signatures:
            self.signatures[place[done : done + len(own)]] = own
            done += len(own)


def near_duplicate_pairs(
    groups: Sequence[RowGroup],
    members: Members,
    reference: Reference,
    others: Sequence[tuple[np.ndarray, np.ndarray]],
    similarity: float,
) -> np.ndarray:
    """Returns the pairs of near-duplicates, each in both directions: a sorted structured array of PAIR.

    others: for each row group, the pairs of other documents with members, int64 (pairs, 2), and their similarity.
    """
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
    for group, (found_pairs, found_similarity) in zip(groups, others, strict=True):
        rows, own = found_pairs[:, 0], found_pairs[:, 1]
        one = pairs(group.number, rows, group.uses[rows] == Use.HELDOUT, own, found_similarity)
        back = one.copy()
        for name in ("number", "row", "heldout"):
            back[name], back[f"other_{name}"] = one[f"other_{name}"], one[name]
        found += [one, back]
    return np.sort(np.concatenate(found), order=["number", "row", "other_number", "other_row"])


def exact_duplicates(groups: Sequence[RowGroup], shown: int) -> tuple[int, list[dict[str, Any]]]:
    """Returns how many used documents have the id of an earlier used one, and the first of them."""
    parts = -(-sum(len(group.used()) for group in groups) // IDS_AT_ONCE) or 1
    repeated: list[tuple[int, int]] = []
    total = 0
    for part in range(parts):
        own: list[Any] = [None] * len(groups)
        for number, result in spread(_used_ids, [(group, part, parts) for group in groups]):
            own[number] = result
        hashes = np.concatenate([hashes for hashes, _ in own])
        again = np.ones(len(hashes), bool)
        again[np.unique(hashes, return_index=True)[1]] = False
        total += int(again.sum())
        ends = np.cumsum([len(rows) for _, rows in own])
        for place in np.flatnonzero(again)[:shown].tolist():
            number = int(np.searchsorted(ends, place, side="right"))
            repeated.append((number, int(own[number][1][place - (ends[number] - len(own[number][1]))])))
    documents = Documents(groups)
    return total, [documents.named(*at) for at in sorted(repeated)[:shown]]


def _used_ids(group: RowGroup, part: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns hashes of the ids of the used documents, of those that fall to this part (uint64), and their rows."""
    used = group.used()
    ids = group.read(["id"])["id"].take(pa.array(used)).to_pylist()
    hashes = word_hashes(map(str, ids))
    own = hashes % np.uint64(parts) == part
    return hashes[own], used[own]
