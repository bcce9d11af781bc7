"""Near-duplicates for the gates: MinHash signatures of documents, and a reference set that others are compared with.

MinHash (Broder 1997) of the runs of SHINGLE normalised words, by `rensa`; candidates by banding (locality-sensitive
hashing), then the share of equal entries of the signatures, an unbiased estimate of the Jaccard similarity with a
standard error of sqrt(J (1 - J) / 120), 0.037 at 0.8. Banding misses a pair of similarity 0.8 once in 14,000 times.
"""

from pathlib import Path

import numpy as np

from pico.data.gates.ngrams import Words

SHINGLE = 5
"""Words of a shingle; documents of fewer words, greetings and headings, are not compared."""
BANDS, BAND_ROWS = 24, 5
PERMUTATIONS = BANDS * BAND_ROWS
SEED = 42
MOST = 256
"""Members of one bucket that a document is compared with: a bucket may hold half the corpus."""
CANDIDATES = 2**14
"""Pairs whose signatures are compared at a time: 16 MB."""


def signatures(words: Words) -> np.ndarray:
    """MinHash signature of each text: uint32 (texts, PERMUTATIONS). A text without a shingle has zeros."""
    import rensa

    found = np.zeros((len(words.counts), PERMUTATIONS), np.uint32)
    for first, part in words.parts():
        _, shingles, owners = next(part.runs([SHINGLE]))
        counts = np.bincount(owners, minlength=len(part.counts))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets, PERMUTATIONS, SEED)
        own = np.array(matrix.to_rows(), np.uint32)
        own[counts == 0] = 0
        found[first : first + len(counts)] = own
    return found


class Reference:
    """Documents that others are compared with: their signatures, and for each band their keys in order."""

    def __init__(self, members: np.ndarray, keys: np.ndarray, order: np.ndarray) -> None:
        self.members = members
        """uint32 (members, PERMUTATIONS)"""
        self._keys, self._order = keys, order

    @classmethod
    def of(cls, members: np.ndarray) -> "Reference":
        """From signatures; the first members of a bucket are those that are compared where it has more than MOST."""
        keys = _band_keys(members)
        order = np.empty(keys.shape, np.int32)
        for band, own in enumerate(keys):
            order[band] = np.argsort(own, kind="stable")
            own[:] = own[order[band]]
        return cls(members, keys, order)

    def pairs(self, others: np.ndarray, similarity: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(which of `others`, which member, estimated similarity) of all pairs at least so similar, sorted."""
        found = [np.zeros((0, 2), np.int64)]
        without = ~others.any(axis=1)
        for keys, own, order in zip(_band_keys(others), self._keys, self._order, strict=True):
            first = np.searchsorted(own, keys, side="left")
            count = np.minimum(np.searchsorted(own, keys, side="right") - first, MOST)
            count[without] = 0
            which = np.repeat(np.arange(len(others)), count)
            place = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
            candidates = np.stack([which, order[place]], axis=1)
            for start in range(0, len(candidates), CANDIDATES):
                part = candidates[start : start + CANDIDATES]
                alike = (others[part[:, 0]] == self.members[part[:, 1]]).mean(axis=1)
                found.append(part[alike >= similarity])
        pairs = np.unique(np.concatenate(found), axis=0)
        alike = np.zeros(len(pairs))
        for start in range(0, len(pairs), CANDIDATES):
            part = pairs[start : start + CANDIDATES]
            alike[start : start + CANDIDATES] = (others[part[:, 0]] == self.members[part[:, 1]]).mean(axis=1)
        return pairs[:, 0], pairs[:, 1], alike

    def save(self, folder: Path) -> None:
        """Writes it to a folder, from where processes map it into memory."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in (("members", self.members), ("keys", self._keys), ("order", self._order)):
            np.save(folder / f"{name}.npy", array)

    @classmethod
    def load(cls, folder: Path) -> "Reference":
        """What `save` wrote; the pages are read as they are needed."""
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("members", "keys", "order")]
        return cls(*map(np.asarray, arrays))  # a memmap is slow to index


def _band_keys(found: np.ndarray) -> np.ndarray:
    """One uint64 a band and document, equal where the band's values are: (BANDS, documents)."""
    keys = np.zeros((BANDS, len(found)), np.uint64)
    for band in range(BANDS):
        for column in range(band * BAND_ROWS, (band + 1) * BAND_ROWS):
            keys[band] = (keys[band] ^ found[:, column]) * np.uint64(0x100000001B3)  # as FNV-1a, by value
    return keys
