"""Metrics of predictions: likelihood by position and frequency, in-context score, calibration, divergences."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from pico.analysis.metrics.registry import Measurement
from pico.behaviour.catalogue import listed, measured, undefined
from pico.behaviour.predictions import Predictions, divergence
from pico.behaviour.scorer import Scorer

FREQUENCIES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1.0)
"""Edges of the frequency bins: shares of the training tokens. The first bin holds tokens hardly ever seen."""

OLSSON_CONTEXT, OLSSON_EARLY, OLSSON_LATE = 512, 50, 500
"""The context of Olsson et al. 2022, and the tokens of it whose losses they compare."""


class Bin(NamedTuple):
    """Values from `low` to below `high` (the last bin of frequencies takes `high` too), and the mean over them."""

    low: float
    high: float
    measurement: Measurement


def position_edges(seq: int) -> tuple[int, ...]:
    """0, 1, 2, 4, 8, ... seq: loss falls with the logarithm of the position."""
    edges = [0, 1]
    while edges[-1] < seq:
        edges.append(min(2 * edges[-1], seq))
    return tuple(edges)


@listed(
    "nll_by_position",
    definition="mean negative log-likelihood (nats) of targets, by the number of tokens seen before the input token",
    source="Kaplan et al. 2020, arXiv 2001.08361, fig. 20",
)
def nll_by_position(predictions: Predictions, edges: Sequence[int] | None = None) -> list[Bin]:
    """One bin a pair of neighbouring edges. Position 0 is the prediction from the row's first token alone."""
    nll = predictions.nll
    edges = position_edges(nll.shape[1]) if edges is None else edges
    found = []
    for low, high in pairwise(edges):
        found.append(Bin(low, high, _mean(nll[:, low:high], predictions.vocab_size)))
    return found


@listed(
    "nll_by_frequency",
    definition="mean negative log-likelihood (nats) of targets, by the target's share of the training tokens",
    source="Chang & Bergen 2022, arXiv 2110.02406",
)
def nll_by_frequency(
    predictions: Predictions, frequency: np.ndarray, edges: Sequence[float] = FREQUENCIES
) -> list[Bin]:
    """frequency: (V,), the share of each token; see NGrams.frequency. One bin a pair of neighbouring edges."""
    shares = np.asarray(frequency)[predictions.targets]
    found = []
    for low, high in pairwise(edges):
        inside = (shares >= low) & ((shares < high) | ((high == edges[-1]) & (shares == high)))
        found.append(Bin(low, high, _mean(predictions.nll[inside], predictions.vocab_size)))
    return found


@listed(
    "nll",
    definition="mean negative log-likelihood of the targets (nats a token)",
    source="Jelinek et al. 1977",
)
def mean_nll(predictions: Predictions) -> Measurement:
    """The loss; its exponential is the perplexity."""
    return _mean(predictions.nll, predictions.vocab_size)


@listed(
    "in_context_score",
    definition="loss of the 500th minus loss of the 50th token in a context of 512, both scaled to the context at hand",
    source="Olsson et al. 2022, arXiv 2209.11895",
)
def in_context_score(predictions: Predictions, half_width: int = 0) -> Measurement:
    """Negative where a longer context helps. In nats.

    Scaling: with contexts of T tokens the positions (from 0) are floor(500 T / 512) and floor(50 T / 512), which at
    T = 512 are those of Olsson et al. Each loss is the mean over rows and over `half_width` positions on either side
    (0: that position alone, as they do; more steadies it where rows are few). n_too_small where the windows overlap
    or leave the row.
    """
    nll = predictions.nll
    seq = nll.shape[1]
    early, late = (seq * at // OLSSON_CONTEXT for at in (OLSSON_EARLY, OLSSON_LATE))
    if early - half_width < 0 or late + half_width >= seq or early + half_width >= late - half_width or not len(nll):
        return undefined("n_too_small", nll.size, predictions.vocab_size)
    windows = [nll[:, at - half_width : at + half_width + 1] for at in (early, late)]
    score = float(windows[1].mean() - windows[0].mean())
    return measured(score, windows[0].size, predictions.vocab_size)


@listed(
    "expected_calibration_error",
    definition="sum over bins of share x |accuracy - mean confidence| of the most probable token",
    source="Guo et al. 2017, arXiv 1706.04599; equal-mass bins: Nixon et al. 2019, arXiv 1904.01685",
)
def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15, binning: Literal["width", "mass"] = "width", p: int = 1
) -> Measurement:
    """Top-label calibration error, between 0 and 1.

    confidence: the largest probability of each prediction; correct: whether that label was right; any equal shapes.
    binning: "width": equal parts of [0, 1], (low, high]; "mass": equal numbers of predictions, by confidence. p: what
    the measurement records as width (the vocabulary). n_too_small where there are fewer predictions than bins.
    """
    confidence, correct = np.ravel(confidence).astype(np.float64), np.ravel(correct).astype(np.float64)
    if len(confidence) < bins:
        return undefined("n_too_small", len(confidence), p)
    if not np.isfinite(confidence).all():
        return undefined("nonfinite", len(confidence), p)
    if binning == "width":
        which = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    else:
        which = np.empty(len(confidence), np.int64)
        which[np.argsort(confidence, kind="stable")] = np.arange(len(confidence)) * bins // len(confidence)
    gap = np.bincount(which, weights=correct - confidence, minlength=bins)
    return measured(float(np.abs(gap).sum() / len(confidence)), len(confidence), p)


@listed(
    "kl_to_unigram",
    definition="mean KL(model || unigram distribution of the training tokens, add-one smoothed), nats",
    source="Chang & Bergen 2022, arXiv 2110.02406",
)
def kl_to_unigram(predictions: Predictions) -> Measurement:
    """0 for a model that has learnt token frequencies and nothing else."""
    assert predictions.unigram_kl is not None, "predict() was given no n-grams"
    return _mean(predictions.unigram_kl, predictions.vocab_size)


@listed(
    "kl_to_bigram",
    definition="mean KL(model || bigram distribution of the training tokens, unigram-smoothed: see NGrams), nats",
    source="Chang & Bergen 2022, arXiv 2110.02406; smoothing: MacKay & Peto 1995",
)
def kl_to_bigram(predictions: Predictions) -> Measurement:
    """0 for a model that looks at the last token alone and knows what follows it."""
    assert predictions.bigram_kl is not None, "predict() was given no n-grams"
    return _mean(predictions.bigram_kl, predictions.vocab_size)


@listed(
    "kl_to_checkpoint",
    definition="mean KL(model || another checkpoint of the same run), nats a token",
    source="Kullback & Leibler 1951",
)
@listed(
    "kl_to_seed",
    definition="mean KL(model || the model of another seed at its own step), nats a token",
    source="Kullback & Leibler 1951",
)
def kl_divergence(scorer: Scorer, other: Scorer, rows: np.ndarray) -> Measurement:
    """Mean KL(scorer || other) over the predicted tokens of rows (n, seq + 1). 0 for equal models.

    Cost: one forward pass of each. Raises PicoError for rows that either cannot read.
    """
    return _mean(divergence(scorer, other, rows), scorer.vocab_size)


def _mean(values: np.ndarray, p: int) -> Measurement:
    return measured(float(values.mean()) if values.size else 0.0, values.size, p)
