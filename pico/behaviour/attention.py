"""Metrics of attention, by layer and head: entropy, largest logit, induction; and induction as the loss sees it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from pico.analysis.metrics.registry import Measurement, metric
from pico.behaviour.predictions import AttentionSummary, attention_batches, predict
from pico.behaviour.scorer import AttentionScorer, Scorer
from pico.behaviour.subject import Subject, Value, measured, undefined


class HeadMeasurement(NamedTuple):
    """The measurement of one head."""

    layer: int
    head: int
    measurement: Measurement


def _values(found: list[HeadMeasurement], params: dict[str, Any], split: str | None) -> Iterator[Value]:
    for one in found:
        yield Value(one.measurement, params, split, one.layer, one.head)


@metric(
    definition="mean over positions of -sum a ln a, a the attention (nats); uniform attention gives ln t at position t",
    source="Zhai et al. 2023, arXiv 2303.06296",
    types="B",
    default=True,
)
def attention_entropy(subject: Subject) -> Iterator[Value]:
    """By head. The first position, whose entropy is 0 whatever the head does, is left out."""
    if subject.attention is not None:
        yield from _values(head_entropies(subject.attention), _seen(subject), "val")


def head_entropies(summary: AttentionSummary) -> list[HeadMeasurement]:
    """Computes each head's mean entropy over rows and all positions but the first."""
    seq = summary.entropy.shape[-1]
    n = summary.n_rows * (seq - 1)
    return [
        HeadMeasurement(layer, head, measured(float(values[1:].mean()) if seq > 1 else 0.0, n, seq))
        for layer, heads in enumerate(summary.entropy)
        for head, values in enumerate(heads)
    ]


@metric(
    definition="largest q.k / sqrt(head_dim) over the batch, before the softmax",
    source="Dehghani et al. 2023, arXiv 2302.05442",
    types="B",
    default=True,
)
def max_attention_logit(subject: Subject) -> Iterator[Value]:
    """By head. Growing without bound, it announces instability."""
    if subject.attention is not None:
        yield from _values(head_logits(subject.attention), _seen(subject), "val")


def head_logits(summary: AttentionSummary) -> list[HeadMeasurement]:
    """Returns each head's largest score over the batch."""
    seq = summary.entropy.shape[-1]
    return [
        HeadMeasurement(layer, head, measured(float(most), summary.n_rows * seq, seq))
        for layer, heads in enumerate(summary.max_logit)
        for head, most in enumerate(heads)
    ]


def _seen(subject: Subject) -> dict[str, int]:
    return {"rows": len(subject.attention_rows), "seq": subject.attention_rows.shape[1]}


@metric(
    definition="mean attention, in the second copy of a repeated random row, to the token after the earlier occurrence",
    source="Olsson et al. 2022, arXiv 2209.11895",
    types="B",
    default=True,
)
def induction_score(subject: Subject) -> Iterator[Value]:
    """By head, between 0 and 1: a perfect induction head gives 1, uniform attention about 1 / (1.5 length)."""
    if isinstance(subject.scorer, AttentionScorer):
        yield from _values(head_induction(subject.scorer, subject.repeated), _random(subject), None)


@torch.no_grad()
def head_induction(scorer: AttentionScorer, repeated: np.ndarray) -> list[HeadMeasurement]:
    """Computes each head's induction score; none where there are no rows. Cost: a pass with explicit attention.

    repeated: see `repeated_tokens`; at position i of the second copy the head should look at i - length + 1.
    """
    length = repeated.shape[1] // 2
    sums: list[np.ndarray] = []
    for part in attention_batches(repeated):
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


@metric(
    definition="mean loss on the first minus the second copy of a repeated random row (nats a token)",
    source="Olsson et al. 2022, arXiv 2209.11895",
    types="B",
    default=True,
)
def induction_loss_score(subject: Subject) -> Iterator[Value]:
    """Induction as the loss sees it: 0 for none, the loss on random tokens for all. Needs no attention."""
    yield Value(induction_gain(subject.scorer, subject.repeated), _random(subject), None)


def induction_gain(scorer: Scorer, repeated: np.ndarray) -> Measurement:
    """Computes what knowing the first copy is worth in the second.

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


def _random(subject: Subject) -> dict[str, int]:
    rows, length = subject.repeated.shape
    return {"rows": rows, "length": length // 2, "seed": subject.settings.seed}
