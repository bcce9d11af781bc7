"""Near-duplicates: MinHash signatures of word shingles, candidates by locality-sensitive hashing, clusters by union.

Signatures and clusters lie on disk, so that memory doesn't grow with the corpus.
"""

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import rensa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pico.data.tokens.encoding import spans
from pico.data.tokens.hashing import MULTIPLIER, minhash, splitmix64

SEED = 1
"""The seed of the permutations: the same for every corpus, so that a cluster does not depend on a setting."""
RECALL = 0.95
"""Least probability that two documents just similar enough become candidates."""
SHINGLED = 2**20
"""Characters that are cut into words at a time: as Python's strings and numbers they take thirty times the memory."""
PAIRS = 4096
"""Candidate pairs whose signatures are read at a time."""
ROUNDS = 8
"""Documents of one bucket that may each found a group of their own, before the rest are let go."""


@lru_cache(maxsize=8)
def bands_and_rows(permutations: int, similarity: float) -> tuple[int, int]:
    """Returns bands and rows of the banding: the most selective one that finds a pair of `similarity` with RECALL."""
    for rows in range(permutations, 0, -1):
        bands = permutations // rows
        if 1 - (1 - similarity**rows) ** bands >= RECALL:
            return bands, rows
    return permutations, 1


def text_signatures(texts: Sequence[str], permutations: int, shingle_words: int) -> np.ndarray:
    """Returns MinHash signatures of the runs of `shingle_words` words, in lower case: uint32 (n, permutations).

    A text of fewer words is one shingle.
    """
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    parts = [_signatures(texts[first:end], permutations, shingle_words) for first, end in spans(sizes, SHINGLED)]
    return np.concatenate([np.zeros((0, permutations), np.uint32), *parts])


def _signatures(texts: Sequence[str], permutations: int, shingle_words: int) -> np.ndarray:
    words = rensa.RMinHash.hash_token_sets([text.lower().split() or [text] for text in texts])
    counts = np.fromiter(map(len, words), np.int64, len(words))
    flat = np.concatenate([np.array(own, np.uint64) for own in words])
    ends = np.cumsum(counts)
    # The hash of a shingle combines those of its words in order; what would reach into the next text is left out.
    shingles = splitmix64(flat)
    for step in range(1, shingle_words):
        following = np.zeros_like(flat)
        following[: max(0, len(flat) - step)] = flat[step:]
        own = np.arange(len(flat)) + step < np.repeat(ends, counts)
        shingles = splitmix64(shingles * MULTIPLIER + np.where(own, following, np.uint64(step)))
    kept = np.arange(len(flat)) + shingle_words <= np.repeat(ends, counts)
    kept[ends - counts] = True  # a text too short for one
    return minhash(shingles[kept], np.add.reduceat(kept, ends - counts, dtype=np.int64), permutations, SEED)


def buckets(batches: Iterator[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the documents whose key others have too, with the number of their bucket: two int64 arrays a batch.

    `batches` are (keys, documents), sorted by both. A bucket is never split: the last one waits for the next batch.
    """
    keys, documents = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    for more_keys, more_documents in batches:
        keys, documents = np.concatenate([keys, more_keys]), np.concatenate([documents, more_documents])
        last = int(np.searchsorted(keys, keys[-1]))
        yield _shared(keys[:last], documents[:last])
        keys, documents = keys[last:], documents[last:]
    yield _shared(keys, documents)


def _shared(keys: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the documents whose key occurs more than once, and numbers for their keys."""
    if not len(keys):
        return documents, np.zeros(0, np.int64)
    starts = np.concatenate([[True], keys[1:] != keys[:-1]])
    number = np.cumsum(starts) - 1
    shared = np.bincount(number)[number] > 1
    return documents[shared], number[shared]


def similar_pairs(
    documents: np.ndarray, bucket: np.ndarray, signature_file: Path, permutations: int, similarity: float
) -> np.ndarray:
    """Returns pairs (k, 2) of documents of one bucket whose signatures agree in at least the share `similarity`.

    Each document is compared with the first of its bucket; those unlike it then among themselves, and so on.
    Signatures lie in the file by document number.
    """
    found = [np.zeros((0, 2), np.int64)]
    for _ in range(ROUNDS):
        if not len(documents):
            break
        starts = np.concatenate([[True], bucket[1:] != bucket[:-1]])
        first = documents[np.flatnonzero(starts)][np.cumsum(starts) - 1]
        alike = np.zeros(len(documents), bool)
        for start in range(0, len(documents), PAIRS):
            part = slice(start, start + PAIRS)
            one, other = (read_signatures(signature_file, own[part], permutations) for own in (documents, first))
            alike[part] = (one == other).mean(axis=1) >= similarity
        pair = alike & ~starts
        found.append(np.stack([first[pair], documents[pair]], axis=1))
        documents, bucket = documents[~alike], bucket[~alike]
    return np.concatenate(found)


def read_signatures(path: Path, documents: np.ndarray, permutations: int) -> np.ndarray:
    """Reads the signatures of some documents: uint32 (n, permutations). A mapped page would bring fifteen others."""
    distinct, place = np.unique(documents, return_inverse=True)
    found = np.empty((len(distinct), permutations), np.uint32)
    width = permutations * found.itemsize
    with open(path, "rb", buffering=0) as file:
        for row, document in zip(found, distinct.tolist(), strict=True):
            if os.preadv(file.fileno(), [row.data], document * width) != width:
                raise OSError(f"{path} is cut short: delete {path.parent}")
    return found[place]


class Clusters:
    """Sets of documents that grow together; each is named by its first document. `parents`: int64, all 0 at first."""

    def __init__(self, parents: np.ndarray) -> None:
        self._parents = parents  # of document d: 0 where it is the first of its cluster, else 1 + an earlier one

    def join(self, pairs: np.ndarray) -> None:
        """Puts the two documents of each pair into one cluster."""
        if not len(pairs):
            return
        ends = self.first(pairs.reshape(-1)).reshape(-1, 2)
        ends = ends[ends[:, 0] != ends[:, 1]]
        if not len(ends):
            return
        names, index = np.unique(ends, return_inverse=True)
        index = index.reshape(-1, 2)
        graph = coo_array((np.ones(len(index), bool), (index[:, 0], index[:, 1])), shape=(len(names), len(names)))
        _, component = connected_components(graph, directed=False)
        lowest = np.full(component.max() + 1, np.iinfo(np.int64).max)
        np.minimum.at(lowest, component, names)
        moved = lowest[component] != names
        self._parents[names[moved]] = lowest[component][moved] + 1

    def first(self, documents: np.ndarray) -> np.ndarray:
        """Returns the first document of the cluster of each."""
        found = np.array(documents, np.int64)
        while True:
            parents = self._parents[found]
            inner = parents > 0
            if not inner.any():
                return found
            found[inner] = parents[inner] - 1
