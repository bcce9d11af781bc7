"""Metrics of predictions: likelihood, in-context score, calibration, divergences, memorisation."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from pico.analysis.metrics.registry import Measurement
from pico.behaviour.predictions import Predictions, divergence, predict
from pico.behaviour.scorer import Scorer, as_scorer
from pico.behaviour.subject import Subject, Value, behaviour_metric, measured, undefined

FREQUENCIES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1.0)
"""Edges of the frequency bins: shares of the training tokens. The first bin holds tokens hardly ever seen."""

OLSSON_CONTEXT, OLSSON_EARLY, OLSSON_LATE = 512, 50, 500
"""The context of Olsson et al. 2022, and the tokens of it whose losses they compare."""
PROMPT, CONTINUATION = 32, 32


@behaviour_metric(definition="mean negative log-likelihood of the targets (nats a token)", source="Jelinek et al. 1977")
def nll(subject: Subject) -> Iterator[Value]:
    """Yields the loss; its exponential is the perplexity."""
    yield Value(_mean(subject.predictions.nll, subject.scorer.vocab_size), subject.on)


class Bin(NamedTuple):
    """Values from `low` to below `high` (the last bin of frequencies takes `high` too), and the mean over them."""

    low: float
    high: float
    measurement: Measurement


@behaviour_metric(
    definition="mean negative log-likelihood (nats) of targets, by the number of tokens seen before the input token",
    source="Kaplan et al. 2020, arXiv 2001.08361, fig. 20",
)
def nll_by_position(subject: Subject) -> Iterator[Value]:
    """Yields a value a bin of `position_edges`."""
    for one in by_position(subject.predictions):
        yield Value(one.measurement, subject.on | {"bin": [one.low, one.high]})


def position_edges(seq: int) -> tuple[int, ...]:
    """Returns 0, 1, 2, 4, 8, ... seq: loss falls with the logarithm of the position."""
    edges = [0, 1]
    while edges[-1] < seq:
        edges.append(min(2 * edges[-1], seq))
    return tuple(edges)


def by_position(predictions: Predictions, edges: Sequence[int] | None = None) -> list[Bin]:
    """Returns a bin a pair of neighbouring edges. Position 0 is the prediction from the row's first token alone."""
    nll = predictions.nll
    edges = position_edges(nll.shape[1]) if edges is None else edges
    return [Bin(low, high, _mean(nll[:, low:high], predictions.vocab_size)) for low, high in pairwise(edges)]


@behaviour_metric(
    definition="mean negative log-likelihood (nats) of targets, by the target's share of the training tokens",
    source="Chang & Bergen 2022, arXiv 2110.02406",
)
def nll_by_frequency(subject: Subject) -> Iterator[Value]:
    """Yields a value a bin of FREQUENCIES; none without n-grams."""
    if subject.ngrams is not None:
        for one in by_frequency(subject.predictions, subject.ngrams.frequency):
            yield Value(one.measurement, _counted(subject) | {"bin": [one.low, one.high]})


def by_frequency(predictions: Predictions, frequency: np.ndarray, edges: Sequence[float] = FREQUENCIES) -> list[Bin]:
    """Returns a bin a pair of neighbouring edges. frequency: (V,), the share of each token; see NGrams.frequency."""
    shares = np.asarray(frequency)[predictions.targets]
    found = []
    for low, high in pairwise(edges):
        inside = (shares >= low) & ((shares < high) | ((high == edges[-1]) & (shares == high)))
        found.append(Bin(low, high, _mean(predictions.nll[inside], predictions.vocab_size)))
    return found


@behaviour_metric(
    definition="loss of the 500th minus loss of the 50th token in a context of 512, both scaled to the context at hand",
    source="Olsson et al. 2022, arXiv 2209.11895",
)
def in_context_score(subject: Subject) -> Iterator[Value]:
    """Yields a value that is negative where a longer context helps; see `context_score`."""
    half_width = int(subject.settings.in_context_half_width * subject.on["seq"])
    yield Value(context_score(subject.predictions, half_width), subject.on | {"half_width": half_width})


def context_score(predictions: Predictions, half_width: int = 0) -> Measurement:
    """Computes a late loss minus an early one, in nats.

    With contexts of T tokens the positions (from 0) are floor(500 T / 512) and floor(50 T / 512), which at
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


@behaviour_metric(
    definition="sum over bins of share x |accuracy - mean confidence| of the most probable token",
    source="Guo et al. 2017, arXiv 1706.04599; equal-mass bins: Nixon et al. 2019, arXiv 1904.01685",
)
def expected_calibration_error(subject: Subject) -> Iterator[Value]:
    """Yields a value with bins of equal width, and one with bins of equal mass; see `calibration_error`."""
    found, bins = subject.predictions, subject.settings.calibration_bins
    for binning in ("width", "mass"):
        error = calibration_error(found.confidence, found.correct, bins, binning, found.vocab_size)
        yield Value(error, subject.on | {"bins": bins, "binning": binning})


def calibration_error(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15, binning: Literal["width", "mass"] = "width", p: int = 1
) -> Measurement:
    """Computes the top-label calibration error, between 0 and 1.

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


@behaviour_metric(
    definition="mean KL(model || unigram distribution of the training tokens, add-one smoothed), nats",
    source="Chang & Bergen 2022, arXiv 2110.02406",
)
def kl_to_unigram(subject: Subject) -> Iterator[Value]:
    """Yields 0 for a model that has learnt token frequencies and nothing else. No value without n-grams."""
    if subject.predictions.unigram_kl is not None:
        yield Value(_mean(subject.predictions.unigram_kl, subject.scorer.vocab_size), _counted(subject))


@behaviour_metric(
    definition="mean KL(model || bigram distribution of the training tokens, unigram-smoothed: see NGrams), nats",
    source="Chang & Bergen 2022, arXiv 2110.02406; smoothing: MacKay & Peto 1995",
)
def kl_to_bigram(subject: Subject) -> Iterator[Value]:
    """Yields 0 for a model that looks at the last token alone, and knows what follows. No value without n-grams."""
    if subject.predictions.bigram_kl is not None:
        yield Value(_mean(subject.predictions.bigram_kl, subject.scorer.vocab_size), _counted(subject))


def _counted(subject: Subject) -> dict[str, int]:
    assert subject.ngrams is not None
    return subject.on | {"counted_tokens": subject.ngrams.n_tokens}


@behaviour_metric(
    definition="mean KL(model || another checkpoint of the same run), nats a token",
    source="Kullback & Leibler 1951",
    target="last",
)
def kl_to_checkpoint(subject: Subject) -> Iterator[Value]:
    """Yields a value a checkpoint that is compared with."""
    yield from _divergences(subject, other_run=False)


@behaviour_metric(
    definition="mean KL(model || the model of another seed at its own step), nats a token",
    source="Kullback & Leibler 1951",
    target="run",
)
def kl_to_seed(subject: Subject) -> Iterator[Value]:
    """Yields a value a run that is compared with."""
    yield from _divergences(subject, other_run=True)


def _divergences(subject: Subject, other_run: bool) -> Iterator[Value]:
    for other in subject.compared:
        if other.other_run == other_run:
            found = kl_divergence(subject.scorer, as_scorer(other.load()), subject.rows)
            target_run = other.name if other_run else None
            yield Value(found, subject.on | {"target": other.name}, target_step=other.step, target_run=target_run)


def kl_divergence(scorer: Scorer, other: Scorer, rows: np.ndarray) -> Measurement:
    """Computes the mean KL(scorer || other) over the predicted tokens of rows (n, seq + 1). 0 for equal models.

    Cost: one forward pass of each. Raises PicoError for rows that either cannot read.
    """
    return _mean(divergence(scorer, other, rows), scorer.vocab_size)


@behaviour_metric(
    definition="share of rows whose tokens 33 to 64 a greedy continuation of the first 32 gives exactly",
    source="Carlini et al. 2022, arXiv 2202.07646; Biderman et al. 2023, arXiv 2304.11158",
)
def memorisation(subject: Subject) -> Iterator[Value]:
    """Yields the share of training rows, and that of held-out rows, which any model of the language reaches."""
    if subject.training_rows is None:
        return
    for split, given in (("train", subject.training_rows), ("val", subject.rows)):
        taken = given[: subject.settings.memorised_rows]
        params = {"prompt": PROMPT, "continuation": CONTINUATION, "rows": len(taken)}
        yield Value(memorised(subject.scorer, taken), params, split)


def memorised(scorer: Scorer, rows: np.ndarray, prompt: int = PROMPT, continuation: int = CONTINUATION) -> Measurement:
    """Computes the share of rows that are memorised. rows: (n, at least prompt + continuation) ids.

    Cost: one forward pass over n x (prompt + continuation) tokens. No text is generated: the greedy continuation equals
    the row's exactly if every token of the row is the most probable one given the row's own tokens before it, because
    up to the first mismatch the two contexts are the same. n_too_small where rows are too short or there are none.
    """
    length = prompt + continuation
    if not len(rows) or rows.shape[1] < length or scorer.context_length < length - 1:
        return undefined("n_too_small", len(rows), scorer.vocab_size)
    matched = predict(scorer, rows[:, :length]).correct[:, prompt - 1 :].all(axis=1)
    return measured(float(matched.mean()), len(rows), scorer.vocab_size)


def _mean(values: np.ndarray, p: int) -> Measurement:
    return measured(float(values.mean()) if values.size else 0.0, values.size, p)
