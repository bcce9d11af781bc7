"""Runs of n words as 64-bit hashes, and an index that finds those of one collection in another.

Words are normalised as for GPT-3 (Brown et al. 2020, appendix C) and in the Pile's decontamination: lower case,
punctuation taken out, split at white space; here punctuation and symbols are Unicode's (`don’t` and `don't` are one
word), after NFKC. Languages written without spaces have few words in this sense, so that little is found in them.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pico.data.tokens.encoding import spans
from pico.data.tokens.hashing import MULTIPLIER

SHORTEST = 8
"""Words of the shortest run that is looked for, as for GPT-3: shorter ones are common phrases."""
PART, PART_TEXTS = 2**18, 2**12
"""Words and texts that are worked on at a time."""
SPLIT = 2**21
"""Bytes of text that are split into words at a time: Arrow holds each step of it."""
MAX_SLOTS_BITS = 26
"""Bits of the index's filter at most: 8 MiB."""


@dataclass(frozen=True)
class Words:
    """The words of some texts, one text after another."""

    hashes: np.ndarray
    """uint64 (words,)"""
    counts: np.ndarray
    """Words of each text, int64 (texts,)."""

    def parts(self) -> Iterator[tuple[int, "Words"]]:
        """Yields (the number of its first text, about PART words) one after another: what is made of runs is large."""
        start = 0
        for first, last in spans(self.counts, PART, PART_TEXTS):
            end = start + int(self.counts[first:last].sum())
            yield first, Words(self.hashes[start:end], self.counts[first:last])
            start = end

    def runs(self, lengths: Sequence[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields (n, hashes of all runs of n words uint64, the text that each lies in int64), for each n of `lengths`.

        A run's hash is a polynomial of those of its words; no run reaches from one text into the next.
        """
        starts = np.arange(len(self.hashes))
        owners = np.repeat(np.arange(len(self.counts)), self.counts)
        left = np.cumsum(self.counts)[owners] - starts if len(starts) else starts  # words to the end of the text
        found = self.hashes
        for n in range(1, max(lengths, default=0) + 1):
            if n > 1:
                found = found[:-1] * MULTIPLIER + self.hashes[n - 1 :]
            if n in lengths:
                inside = left[: len(found)] >= n
                yield n, found[inside], owners[: len(found)][inside]


def normalized_words(texts: pa.Array | pa.ChunkedArray) -> Words:
    """Returns the normalised words of texts; a null has none."""
    texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    texts = pc.fill_null(texts, "").cast(pa.large_string())
    sizes = pc.binary_length(texts).to_numpy(zero_copy_only=False)
    parts = [_split(texts[first:last]) for first, last in spans(sizes, SPLIT)]
    return Words(
        np.concatenate([np.zeros(0, np.uint64), *(part.hashes for part in parts)]),
        np.concatenate([np.zeros(0, np.int64), *(part.counts for part in parts)]),
    )


def _split(text: pa.Array) -> Words:
    text = pc.utf8_lower(pc.utf8_normalize(text, form="NFKC"))
    text = pc.utf8_trim_whitespace(pc.replace_substring_regex(text, r"[\p{P}\p{S}]+", ""))
    split = pc.utf8_split_whitespace(text)
    counts = split.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    empty = pc.equal(text, "").to_numpy(zero_copy_only=False)  # whose split is one empty word
    encoded = split.flatten().dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)[~np.repeat(empty, counts)]
    return Words(word_hashes(encoded.dictionary.to_pylist())[codes], np.where(empty, 0, counts))


def whole(words: Words, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the runs that are a whole text of SHORTEST to `longest` - 1 words: hashes, and the text of each."""
    found, texts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for n, hashes, owners in words.runs(range(SHORTEST, longest)):
        own = words.counts[owners] == n
        found.append(hashes[own])
        texts.append(owners[own])
    return np.concatenate(found), np.concatenate(texts)


class Index:
    """A sorted set of hashes, with a bitmap before it that most of those that are not in it fall through."""

    def __init__(self, hashes: np.ndarray, slots: np.ndarray | None = None) -> None:
        self.hashes = hashes
        """uint64, sorted, distinct."""
        bits = min(MAX_SLOTS_BITS, max(10, int(np.ceil(np.log2(16 * max(1, len(hashes)))))))
        self._shift = np.uint64(64 - bits)
        if slots is None:
            filled = np.zeros(2**bits, bool)
            filled[hashes >> self._shift] = True
            slots = np.packbits(filled, bitorder="little")
        self._slots = slots

    @classmethod
    def of(cls, hashes: np.ndarray) -> "Index":
        """Makes one from hashes in any order, with repetition."""
        return cls(np.unique(hashes))

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the places in `hashes` of those that are in the index, and their places there: two int64 arrays."""
        slots = hashes >> self._shift
        likely = np.flatnonzero(self._slots[slots >> np.uint64(3)] >> (slots & np.uint64(7)).astype(np.uint8) & 1)
        if not len(likely) or not len(self.hashes):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        wanted = hashes[likely]
        places = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        right = self.hashes[places] == wanted
        return likely[right], places[right]

    def save(self, folder: Path) -> None:
        """Writes it to a folder, from where processes map it into memory."""
        save_arrays(folder, hashes=self.hashes, slots=self._slots)

    @classmethod
    def load(cls, folder: Path) -> "Index":
        """Opens what `save` wrote; the pages are read as they are needed."""
        return cls(*load_arrays(folder, "hashes", "slots"))


def save_arrays(folder: Path, **arrays: np.ndarray) -> None:
    """Writes arrays to a folder, from where processes map them into memory."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def load_arrays(folder: Path, *names: str) -> list[np.ndarray]:
    """Opens what `save_arrays` wrote; the pages are read as they are needed."""
    # A memmap is slow to index.
    return [np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in names]


def word_hashes(words: Iterable[str]) -> np.ndarray:
    """Returns the first eight bytes of each word's BLAKE2b: uint64."""
    digests = b"".join(hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words)
    return np.frombuffer(digests, "<u8").astype(np.uint64)
