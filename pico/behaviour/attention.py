"""Metrics of attention, by layer and head: entropy, largest logit, induction; and induction as the loss sees it."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pico.analysis.metrics.registry import Measurement
from pico.behaviour.catalogue import listed, measured, undefined
from pico.behaviour.predictions import predict
from pico.behaviour.scorer import AttentionScorer, Scorer

SCORES_AT_ONCE = 1 << 18
"""Entries (rows x seq x seq) of one head's scores in one pass; a model of 12 heads holds 12 MB a layer."""


class HeadMeasurement(NamedTuple):
    """What one head gave."""

    layer: int
    head: int
    measurement: Measurement


class AttentionSummary(NamedTuple):
    """Reductions of the attention of all heads over a batch of rows."""

    entropy: np.ndarray
    """Mean over rows of the entropy of the attention from each position, nats: (layers, heads, seq) float64."""
    max_logit: np.ndarray
    """The largest score before the softmax: (layers, heads) float64."""
    n_rows: int


@torch.no_grad()
def summarise_attention(scorer: AttentionScorer, input_ids: np.ndarray) -> AttentionSummary:
    """Looks at every head on input_ids (rows, seq). Cost: one forward pass with explicit attention.

    Memory: one layer's scores of SCORES_AT_ONCE / seq^2 rows.
    """
    entropies: list[np.ndarray] = []
    largest: list[np.ndarray] = []
    for part in _parts(input_ids):
        layers = [(_entropy(logits).sum(0), logits.amax((0, 2, 3))) for logits in scorer.attention_logits(part)]
        entropies.append(torch.stack([entropy for entropy, _ in layers]).cpu().numpy())
        largest.append(torch.stack([most for _, most in layers]).double().cpu().numpy())
    return AttentionSummary(np.sum(entropies, axis=0) / len(input_ids), np.max(largest, axis=0), len(input_ids))


def _entropy(logits: Tensor) -> Tensor:
    """-sum a ln a over keys, a the attention: (batch, heads, seq, seq) -> (batch, heads, seq) float64."""
    return torch.special.entr(logits.softmax(-1)).sum(-1, dtype=torch.float64)


@listed(
    "attention_entropy",
    definition="mean over positions of -sum a ln a, a the attention (nats); uniform attention gives ln t at position t",
    source="Zhai et al. 2023, arXiv 2303.06296",
)
def attention_entropy(summary: AttentionSummary) -> list[HeadMeasurement]:
    """By head. The first position, whose entropy is 0 whatever the head does, is left out."""
    seq = summary.entropy.shape[-1]
    n = summary.n_rows * (seq - 1)
    return [
        HeadMeasurement(layer, head, measured(float(values[1:].mean()) if seq > 1 else 0.0, n, seq))
        for layer, heads in enumerate(summary.entropy)
        for head, values in enumerate(heads)
    ]


@listed(
    "max_attention_logit",
    definition="largest q.k / sqrt(head_dim) over the batch, before the softmax",
    source="Dehghani et al. 2023, arXiv 2302.05442",
)
def max_attention_logit(summary: AttentionSummary) -> list[HeadMeasurement]:
    """By head. Growing without bound, it announces instability."""
    seq = summary.entropy.shape[-1]
    return [
        HeadMeasurement(layer, head, measured(float(most), summary.n_rows * seq, seq))
        for layer, heads in enumerate(summary.max_logit)
        for head, most in enumerate(heads)
    ]


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


@listed(
    "induction_score",
    definition="mean attention, in the second copy of a repeated random row, to the token after the earlier occurrence",
    source="Olsson et al. 2022, arXiv 2209.11895",
)
@torch.no_grad()
def induction_score(scorer: AttentionScorer, repeated: np.ndarray) -> list[HeadMeasurement]:
    """By head, between 0 and 1: a perfect induction head gives 1, uniform attention about 1 / (1.5 length).

    repeated: see `repeated_tokens`; at position i of the second copy the head should look at i - length + 1.
    Cost: one forward pass with explicit attention. An empty list where there are no rows.
    """
    length = repeated.shape[1] // 2
    sums: list[np.ndarray] = []
    for part in _parts(repeated):
        layers = []
        for logits in scorer.attention_logits(part):
            attention = logits[:, :, length:].softmax(-1)
            layers.append(attention.diagonal(1, -2, -1).sum((0, 2), dtype=torch.float64))
        sums.append(torch.stack(layers).cpu().numpy())
    if not sums:
        return []
    n = repeated.shape[0] * length
    return [
        HeadMeasurement(layer, head, measured(float(value), n, 2 * length))
        for layer, heads in enumerate(np.sum(sums, axis=0) / n)
        for head, value in enumerate(heads)
    ]


@listed(
    "induction_loss_score",
    definition="mean loss on the first minus the second copy of a repeated random row (nats a token)",
    source="Olsson et al. 2022, arXiv 2209.11895",
)
def induction_loss_score(scorer: Scorer, repeated: np.ndarray) -> Measurement:
    """What knowing the first copy is worth: 0 for none, the loss on random tokens for all. Needs no attention.

    repeated: see `repeated_tokens`. The first token of either copy, which nothing foretells, is left out.
    """
    length = repeated.shape[1] // 2
    if not len(repeated):
        return undefined("n_too_small", 0, scorer.vocab_size)
    nll = predict(scorer, repeated).nll  # column j is the loss of token j + 1
    return measured(
        float(nll[:, : length - 1].mean() - nll[:, length:].mean()),
        repeated.shape[0] * (length - 1),
        scorer.vocab_size,
    )


def _parts(input_ids: np.ndarray) -> Iterator[Tensor]:
    """Rows, few enough that one head's scores number at most SCORES_AT_ONCE."""
    rows = torch.from_numpy(np.array(input_ids, np.int64))
    if len(rows):
        yield from rows.split(max(1, SCORES_AT_ONCE // rows.shape[1] ** 2))
