"""Unigram and bigram distributions of given tokens, smoothed so that every token has a probability."""

import numpy as np

from pico.errors import PicoError

PRIOR = 1.0
"""Pseudo-counts of the unigram distribution behind each bigram row."""


class NGrams:
    """Counts of single tokens and of neighbours within a row, and the distributions that they give.

    unigram(y) = (c(y) + 1) / (N + V). bigram(y | x) = (c(x, y) + PRIOR unigram(y)) / (c(x, .) + PRIOR), the
    hierarchical Dirichlet of MacKay & Peto 1995: a token never seen as `x` falls back on the unigrams. Bigrams are kept
    sparse: memory grows with the distinct pairs seen, not with V^2. Cost: one sort of the tokens.
    """

    def __init__(self, rows: np.ndarray, vocab_size: int) -> None:
        """rows: (n, length) ids; pairs do not cross rows. Raises PicoError for ids outside the vocabulary."""
        rows = np.asarray(rows, np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= vocab_size):
            raise PicoError(f"token ids run from {rows.min()} to {rows.max()}; the vocabulary has {vocab_size}")
        self.vocab_size = vocab_size
        self.n_tokens = int(rows.size)
        self.counts = np.bincount(rows.ravel(), minlength=vocab_size)
        """Occurrences by token: (V,) int64."""
        self.unigram = (self.counts + 1.0) / (self.n_tokens + vocab_size)
        """(V,) float64, sums to 1."""
        pairs, counts = np.unique(rows[:, :-1].ravel() * vocab_size + rows[:, 1:].ravel(), return_counts=True)
        self._next, self._pair_counts = pairs % vocab_size, counts.astype(np.float64)
        self._starts = np.searchsorted(pairs // vocab_size, np.arange(vocab_size + 1))
        self._totals = np.diff(np.concatenate([[0.0], np.cumsum(self._pair_counts)])[self._starts])

    @property
    def frequency(self) -> np.ndarray:
        """Share of all tokens, unsmoothed: (V,) float64; zero where a token never occurs."""
        return self.counts / max(1, self.n_tokens)

    def bigram(self, previous: np.ndarray) -> np.ndarray:
        """The next-token distribution after each of `previous`, (m,) ids: (m, V) float64, rows sum to 1."""
        previous = np.asarray(previous, np.int64)
        weight = 1.0 / (self._totals[previous] + PRIOR)
        found = (PRIOR * weight)[:, None] * self.unigram
        lengths = self._starts[previous + 1] - self._starts[previous]
        row = np.repeat(np.arange(len(previous)), lengths)
        within = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        entry = self._starts[previous][row] + within
        found[row, self._next[entry]] += self._pair_counts[entry] * weight[row]
        return found
