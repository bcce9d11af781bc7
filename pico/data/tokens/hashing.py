"""Hashes of documents: shares drawn by them, mixing, and MinHash signatures with the keys of their bands.

A. Z. Broder, On the resemblance and containment of documents (1997). Signatures are rensa's.
"""

import numpy as np
import rensa

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def low_hashes(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Returns whether each hash (the first eight bytes, uint64), as a number in [0, 1), is below `fraction`: bool.

    A document's hash (its id: sha256 of its text) decides whether it is held out, so a document stays on its side when
    others come or go, and a copy of it cannot be on the other.
    """
    return (hashes >> np.uint64(12)) < fraction * 2**52  # 52 bits: exact in a double


def is_low(digest: str, fraction: float) -> bool:
    """Returns whether a hash in hex, as a number in [0, 1), is below `fraction`."""
    return int(digest[:13], 16) < fraction * 2**52  # 13 hex digits: exact in a double


def splitmix64(values: np.ndarray) -> np.ndarray:
    """Spreads every bit of uint64 over all others: a bijection (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def minhash(shingles: np.ndarray, counts: np.ndarray, permutations: int, seed: int) -> np.ndarray:
    """Returns MinHash signatures: uint32 (texts, permutations).

    `shingles`: hashes of the shingles of all texts, one text after another, uint64; `counts`: shingles of each text.
    """
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
    digests = rensa.RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets, permutations, seed)
    return np.array(digests.to_rows(), np.uint32).reshape(len(counts), permutations)


def band_keys(signatures: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """Returns uint64 (bands, texts): equal where all `rows` values of the band are."""
    keys = np.zeros((bands, len(signatures)), np.uint64)
    for band in range(bands):
        for column in range(band * rows, (band + 1) * rows):
            keys[band] = splitmix64(keys[band] * MULTIPLIER + signatures[:, column])
    return keys
