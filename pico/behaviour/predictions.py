"""One pass of a model over token rows: what each prediction said, reduced token by token as it is made.

Every metric of likelihood, calibration and divergence is a mean over these arrays, so that the model runs once.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pico.behaviour.ngrams import NGrams
from pico.behaviour.scorer import Scorer, check_rows, log_probability_chunks

TOKENS_AT_ONCE = 1 << 11
"""Tokens in one forward pass; their logits are made a chunk at a time."""


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
    """Whether the most probable token was the target (the lowest id among equals)."""
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
    """KL(scorer || other) in nats at each predicted position: float64 (rows, seq), rows being (n, seq + 1).

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
    """sum p (log p - log q) over the last axis; where p is 0 the term is 0, also where log p is -inf."""
    p = log_p.exp()
    return torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(-1, dtype=torch.float64)


def _numpy(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
