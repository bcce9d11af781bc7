"""Passes of a model over token rows, reduced as they are made: predictions, divergences, attention; and n-grams.

Every metric of likelihood, calibration and divergence is a mean over these arrays, so that the model runs once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pico.behaviour.scorer import AttentionScorer, Scorer, check_rows, log_probability_chunks
from pico.errors import PicoError

TOKENS_AT_ONCE = 1 << 11
"""Tokens in one forward pass; their logits are made a chunk at a time."""
SCORES_AT_ONCE = 1 << 18
"""Entries (rows x seq x seq) of one head's scores in one pass; a model of 12 heads holds 12 MB a layer."""
PRIOR = 1.0
"""Pseudo-counts of the unigram distribution behind each bigram row."""


class NGrams:
    """Counts of single tokens and of neighbours within a row, and the distributions that they give.

    unigram(y) = (c(y) + 1) / (N + V). bigram(y | x) = (c(x, y) + PRIOR unigram(y)) / (c(x, .) + PRIOR), the
    hierarchical Dirichlet of MacKay & Peto 1995: a token never seen as `x` falls back on the unigrams. Bigrams are kept
    sparse: memory grows with the distinct pairs seen, not with V^2. Cost: one sort of the tokens.
    """

    def __init__(self, rows: np.ndarray, vocab_size: int) -> None:
        """Counts rows (n, length) of ids; pairs do not cross rows. Raises PicoError for ids outside the vocabulary."""
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
        """Returns the next-token distribution after each of `previous`, (m,) ids: (m, V) float64, rows sum to 1."""
        previous = np.asarray(previous, np.int64)
        row, token, extra, base = self._seen(previous)
        found = base[:, None] * self.unigram
        found[row, token] += extra
        return found

    def divergences(self, previous: np.ndarray, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """Computes KL(p || unigram) and KL(p || bigram after `previous`) in nats: float64 (m,) each.

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
        """Returns row, token, extra, base: bigrams are base[i] x unigram, with extra[j] added at (row[j], token[j])."""
        weight = 1.0 / (self._totals[previous] + PRIOR)
        lengths = self._starts[previous + 1] - self._starts[previous]
        row = np.repeat(np.arange(len(previous)), lengths)
        within = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        entry = self._starts[previous][row] + within
        return row, self._next[entry], self._pair_counts[entry] * weight[row], PRIOR * weight


@dataclass(frozen=True)
class Predictions:
    """Arrays (rows, seq), one entry a predicted token: rows[:, 1:], each given all before it in its row."""

    targets: np.ndarray
    """int64 ids."""
    nll: np.ndarray
    """-log p(target), nats, float64."""
    confidence: np.ndarray
    """The largest probability, float64."""
    correct: np.ndarray
    """True where the most probable token was the target (the lowest id among equals)."""
    unigram_kl: np.ndarray | None
    """KL(model || unigram) in nats, float64; None without n-grams. Likewise `bigram_kl`."""
    bigram_kl: np.ndarray | None
    vocab_size: int


@torch.no_grad()
def predict(scorer: Scorer, rows: np.ndarray, ngrams: NGrams | None = None) -> Predictions:
    """Scores rows (n, seq + 1). Cost: one forward pass over them; n-grams add one pass over the log-probabilities.

    Memory: TOKENS_AT_ONCE hidden states and a few chunks of LOGITS_AT_ONCE logits, whatever n is.
    Raises PicoError for rows that the model cannot read.
    """
    rows = check_rows(scorer, rows)
    n, seq = rows.shape[0], rows.shape[1] - 1
    per_pass = max(1, TOKENS_AT_ONCE // seq)
    columns: list[list[np.ndarray]] = [[] for _ in range(5)]
    for start in range(0, n, per_pass):
        part = rows[start : start + per_pass]
        previous, targets = part[:, :-1].ravel(), part[:, 1:].ravel()
        at = 0
        for log_p in log_probability_chunks(scorer, torch.from_numpy(part[:, :-1].copy())):
            here = slice(at, at + len(log_p))
            at = here.stop
            wanted = torch.from_numpy(targets[here]).to(log_p.device)
            top, index = log_p.max(-1)
            columns[0].append(-_numpy(log_p.gather(-1, wanted[:, None])[:, 0]))
            columns[1].append(np.exp(_numpy(top)))
            columns[2].append((index == wanted).cpu().numpy())
            if ngrams is not None:
                for column, divergences in zip(columns[3:], ngrams.divergences(previous[here], log_p), strict=True):
                    column.append(_numpy(divergences))
    shaped = [np.concatenate(column).reshape(n, seq) if column else None for column in columns]
    nll, confidence, correct, unigram_kl, bigram_kl = shaped
    if nll is None or confidence is None or correct is None:
        nll = confidence = np.zeros((0, seq))
        correct = np.zeros((0, seq), bool)
    return Predictions(rows[:, 1:], nll, confidence, correct, unigram_kl, bigram_kl, scorer.vocab_size)


@torch.no_grad()
def divergence(scorer: Scorer, other: Scorer, rows: np.ndarray) -> np.ndarray:
    """Computes KL(scorer || other) in nats at each predicted position of rows (n, seq + 1): float64 (n, seq).

    Cost: one forward pass of each; memory as `predict`, twice. Raises PicoError for rows that either cannot read.
    """
    rows = check_rows(other, check_rows(scorer, rows))
    n, seq = rows.shape[0], rows.shape[1] - 1
    per_pass = max(1, TOKENS_AT_ONCE // seq)
    found = [np.zeros(0)]
    for start in range(0, n, per_pass):
        input_ids = torch.from_numpy(rows[start : start + per_pass, :-1].copy())
        chunks = log_probability_chunks(scorer, input_ids), log_probability_chunks(other, input_ids)
        for log_p, log_q in zip(*chunks, strict=True):
            found.append(_numpy(_kl(log_p, log_q.to(log_p))))
    return np.concatenate(found).reshape(n, seq)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Sums p (log p - log q) over the last axis; where p is 0 the term is 0, also where log p is -inf."""
    p = log_p.exp()
    return torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(-1, dtype=torch.float64)


def _numpy(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


class AttentionSummary(NamedTuple):
    """Reductions of the attention of all heads over a batch of rows."""

    entropy: np.ndarray
    """Mean over rows of the entropy of the attention from each position, nats: (layers, heads, seq) float64."""
    max_logit: np.ndarray
    """The largest score before the softmax: (layers, heads) float64."""


@torch.no_grad()
def summarise_attention(scorer: AttentionScorer, input_ids: np.ndarray) -> AttentionSummary:
    """Looks at every head on input_ids (rows, seq). Cost: one forward pass with explicit attention.

    Memory: one layer's scores of SCORES_AT_ONCE / seq^2 rows.
    """
    entropies: list[np.ndarray] = []
    largest: list[np.ndarray] = []
    for part in attention_batches(input_ids):
        layers = [(_entropy(logits).sum(0), logits.amax((0, 2, 3))) for logits in scorer.attention_logits(part)]
        entropies.append(torch.stack([entropy for entropy, _ in layers]).cpu().numpy())
        largest.append(torch.stack([most for _, most in layers]).double().cpu().numpy())
    return AttentionSummary(np.sum(entropies, axis=0) / len(input_ids), np.max(largest, axis=0))


def _entropy(logits: Tensor) -> Tensor:
    """Sums -a ln a over keys, a the attention: (batch, heads, seq, seq) -> (batch, heads, seq) float64."""
    return torch.special.entr(logits.softmax(-1)).sum(-1, dtype=torch.float64)


def repeated_tokens(
    vocab_size: int, length: int, sequences: int, seed: int, exclude: tuple[int, ...] = ()
) -> np.ndarray:
    """Rows of `length` distinct random tokens, twice over: int64 (sequences, 2 length). A pure function.

    Distinct, so that each token has one earlier occurrence and the head no doubt where to look. `exclude`: ids not to
    be drawn, such as the end of text. No rows where the vocabulary is too small.
    """
    allowed = np.setdiff1d(np.arange(vocab_size), np.asarray(exclude, np.int64))
    if len(allowed) < length or length < 2:
        return np.zeros((0, 2 * length), np.int64)
    generator = np.random.Generator(np.random.PCG64(seed))
    half = np.stack([generator.choice(allowed, length, replace=False) for _ in range(sequences)])
    return np.concatenate([half, half], axis=1)


def attention_batches(input_ids: np.ndarray) -> Iterator[Tensor]:
    """Yields rows, few enough that one head's scores number at most SCORES_AT_ONCE."""
    rows = torch.from_numpy(np.array(input_ids, np.int64))
    if len(rows):
        yield from rows.split(max(1, SCORES_AT_ONCE // rows.shape[1] ** 2))
