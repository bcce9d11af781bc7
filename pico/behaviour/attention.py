"""Metrics of attention, by layer and head: entropy, largest logit, induction; and induction as the loss sees it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from pico.analysis.metrics.registry import Measurement
from pico.behaviour.predictions import AttentionSummary, attention_batches, predict
from pico.behaviour.scorer import AttentionScorer, Scorer
from pico.behaviour.subject import Subject, Value, behaviour_metric, measured, undefined


def _by_head(values: np.ndarray, n: int, p: int, params: dict[str, Any], split: str | None) -> Iterator[Value]:
    """Yields a value a head; values: (layers, heads)."""
    for (layer, head), value in np.ndenumerate(values):
        yield Value(measured(float(value), n, p), params, split, layer, head)


@behaviour_metric(
    definition="mean over positions of -sum a ln a, a the attention (nats); uniform attention gives ln t at position t",
    source="Zhai et al. 2023, arXiv 2303.06296",
)
def attention_entropy(subject: Subject) -> Iterator[Value]:
    """Yields a value a head. The first position, whose entropy is 0 whatever the head does, is left out."""
    if subject.attention is not None:
        rows, seq = subject.attention_rows.shape
        params = {"rows": rows, "seq": seq}
        yield from _by_head(head_entropies(subject.attention), rows * (seq - 1), seq, params, "val")


def head_entropies(summary: AttentionSummary) -> np.ndarray:
    """Computes the mean entropy over rows and all positions but the first: (layers, heads) float64."""
    return np.array([
        [float(values[1:].mean()) if len(values) > 1 else 0.0 for values in heads] for heads in summary.entropy
    ])  # fmt: skip


@behaviour_metric(
    definition="largest q.k / sqrt(head_dim) over the batch, before the softmax",
    source="Dehghani et al. 2023, arXiv 2302.05442",
)
def max_attention_logit(subject: Subject) -> Iterator[Value]:
    """Yields a value a head. Growing without bound, it announces instability."""
    if subject.attention is not None:
        rows, seq = subject.attention_rows.shape
        yield from _by_head(subject.attention.max_logit, rows * seq, seq, {"rows": rows, "seq": seq}, "val")


@behaviour_metric(
    definition="mean attention, in the second copy of a repeated random row, to the token after the earlier occurrence",
    source="Olsson et al. 2022, arXiv 2209.11895",
)
def induction_score(subject: Subject) -> Iterator[Value]:
    """Yields a value a head: 1 for a perfect induction head, about 1 / (1.5 length) for uniform attention."""
    rows, width = subject.repeated.shape
    if rows and isinstance(subject.scorer, AttentionScorer):
        scores = head_induction(subject.scorer, subject.repeated)
        yield from _by_head(scores, rows * width // 2, width, _random(subject), None)


@torch.no_grad()
def head_induction(scorer: AttentionScorer, repeated: np.ndarray) -> np.ndarray:
    """Computes the induction score of every head: (layers, heads) float64. Cost: a pass with explicit attention.

    repeated: at least one row, see `repeated_tokens`; at position i of the second copy the head should look at
    i - length + 1.
    """
    length = repeated.shape[1] // 2
    sums: list[np.ndarray] = []
    for part in attention_batches(repeated):
        layers = []
        for logits in scorer.attention_logits(part):
            attention = logits[:, :, length:].softmax(-1)
            layers.append(attention.diagonal(1, -2, -1).sum((0, 2), dtype=torch.float64))
        sums.append(torch.stack(layers).cpu().numpy())
    return np.sum(sums, axis=0) / (repeated.shape[0] * length)


@behaviour_metric(
    definition="mean loss on the first minus the second copy of a repeated random row (nats a token)",
    source="Olsson et al. 2022, arXiv 2209.11895",
)
def induction_loss_score(subject: Subject) -> Iterator[Value]:
    """Yields induction as the loss sees it: 0 for none, the loss on random tokens for all. Needs no attention."""
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
    rows, width = subject.repeated.shape
    return {"rows": rows, "length": width // 2, "seed": subject.settings.seed}
