"""Unigram and bigram distributions of given tokens, smoothed so that every token has a probability."""

import numpy as np
import torch
from torch import Tensor

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
        row, token, extra, base = self._seen(previous)
        found = base[:, None] * self.unigram
        found[row, token] += extra
        return found

    def divergences(self, previous: np.ndarray, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """KL(p || unigram) and KL(p || bigram after `previous`) in nats: float64 (m,) each.

        log_p: (m, V) log-probabilities after each of `previous`, (m,) ids. No (m, V) bigrams are made: they are the
        unigrams times a constant but where a pair was seen.
        """
        row, token, extra, base = self._seen(np.asarray(previous, np.int64))
        log_ratio = np.log1p(extra / (base[row] * self.unigram[token]))  # of the bigram to its constant x unigram

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(log_p.device)

        p = log_p.double().exp_()
        to_unigram = torch.special.entr(p).sum(-1).neg_() - p @ tensor(np.log(self.unigram))
        where = tensor(row), tensor(token)
        known = torch.zeros_like(to_unigram).index_add_(0, where[0], p[where] * tensor(log_ratio))
        return to_unigram, to_unigram - tensor(np.log(base)) * p.sum(-1) - known

    def _seen(self, previous: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The bigrams after each of `previous` are base[i] x unigram, with extra[j] added at (row[j], token[j])."""
        weight = 1.0 / (self._totals[previous] + PRIOR)
        lengths = self._starts[previous + 1] - self._starts[previous]
        row = np.repeat(np.arange(len(previous)), lengths)
        within = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        entry = self._starts[previous][row] + within
        return row, self._next[entry], self._pair_counts[entry] * weight[row], PRIOR * weight
