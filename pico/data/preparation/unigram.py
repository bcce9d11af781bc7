"""The unigram baseline: what a model that knows only how often each token occurs would score."""

from collections.abc import Mapping

import numpy as np


def unigram_bits(counts: np.ndarray) -> np.ndarray:
    """Bits of each id, float64 (vocab_size,), from how often each occurs in the training rows, add one (Laplace)."""
    smoothed = counts.astype(np.float64) + 1.0
    return np.log2(smoothed.sum()) - np.log2(smoothed)


def bits_per_byte(bits: np.ndarray, heldout: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Bits per byte of each domain's held-out rows (targets `rows[:, 1:]`) and of "all" together.

    `heldout`: domain -> (rows (n, row_len), n_bytes (n,)), as `tokens.loader.heldout_rows` gives them. A domain
    without rows is left out. The end of a document costs bits and counts no bytes, as it does for a model.
    """
    totals = {
        domain: (float(bits[rows[:, 1:]].sum()), int(n_bytes.sum())) for domain, (rows, n_bytes) in heldout.items()
    }
    totals["all"] = (sum(b for b, _ in totals.values()), sum(n for _, n in totals.values()))
    return {domain: total / n for domain, (total, n) in totals.items() if n}
