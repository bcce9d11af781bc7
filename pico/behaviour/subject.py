"""The subject of a metric of behaviour: a model and its token rows, with the passes that several metrics share."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from pico.analysis.metrics.registry import STATUSES, Measurement, metric
from pico.behaviour.objective import Objective, language_objective
from pico.behaviour.predictions import (
    AttentionSummary,
    NGrams,
    Predictions,
    predict,
    repeated_tokens,
    summarise_attention,
)
from pico.behaviour.scorer import AttentionScorer, DifferentiableScorer, Scorer

behaviour_metric = partial(metric, types="B", default=True)

WHOLE_MODEL = -1
"""The table's `layer` of values that belong to no layer."""


@dataclass(frozen=True)
class Langevin:
    """The settings of stochastic gradient Langevin dynamics, which samples the neighbourhood of w."""

    step_size: float = 1e-5
    """epsilon: must be well below 4 / (n beta x top eigenvalue + localisation), or the chain flies off."""
    localisation: float = 100.0
    """gamma, the strength of the spring to w. It lowers the estimate by n beta h / (n beta h + gamma) in a direction
    of curvature h, and without it a chain in a flat direction wanders off."""
    chains: int = 2
    burn_in: int = 100
    """Steps before the loss is averaged."""
    draws: int = 200
    """Steps whose losses are averaged, in each chain."""


@dataclass(frozen=True)
class BehaviourSettings:
    """All numbers that a value depends on. The defaults take seconds for a checkpoint of the laptop scale."""

    metrics: Collection[str] | None = None
    """Names of metrics of behaviour. None: those that are registered as `default`."""
    seed: int = 0
    """The seed of random tokens, probes and chains."""
    heldout_rows: int = 64
    """At most so many, spread evenly over the rows given."""
    ngram_rows: int = 4096
    """Training rows that are counted for unigrams, bigrams and frequency bins, spread evenly."""
    attention_rows: int = 8
    """Held-out rows on which heads are looked at."""
    repeated_length: int = 64
    """Length of the random row that is repeated; cut to half the context, and to the tokens there are."""
    repeated_rows: int = 16
    memorised_rows: int = 64
    """The first training rows, which every checkpoint but the earliest has seen; and as many held-out rows beside."""
    landscape_rows: int = 4
    """The first training rows, over which the loss whose curvature is measured is a mean."""
    landscape_rows_at_once: int = 1
    in_context_half_width: float = 1 / 64
    """Half the width of the in-context score's windows, in contexts; above 12 / 512 the later one leaves the row."""
    calibration_bins: int = 15
    hessian_tolerance: float = 1e-2
    """Relative, of the largest eigenvalue."""
    krylov: int = 10
    trace_probes: int = 8
    langevin: Langevin = field(default_factory=Langevin)


@dataclass(frozen=True)
class Compared:
    """Another model whose predictions are compared with."""

    load: Callable[[], Any]
    """Gives anything that `as_scorer` takes; called when its turn comes, so that one is in memory at a time."""
    step: int
    """Its step: the table's `target_step`."""
    name: str
    """"last" or "previous" for a checkpoint of the same run, or the name of the other run."""
    other_run: bool = False


@dataclass(frozen=True)
class Value:
    """A measurement, and what sets it apart from others of its metric: no two may agree in all the rest."""

    measurement: Measurement
    params: dict[str, Any]
    """Plain values that say how it was measured; the table's `params`."""
    split: str | None = "val"
    """"val", "train", or None for made-up rows."""
    layer: int = WHOLE_MODEL
    head: int | None = None
    target_step: int | None = None
    target_run: str | None = None
    standard_error: Measurement | None = None
    """Written as a value of `<metric>_standard_error`."""


@dataclass
class Subject:
    """A model and what it is measured on. Passes over the model are made when a metric asks, once for all metrics."""

    scorer: Scorer
    rows: np.ndarray
    """Held-out rows (n, seq + 1) of token ids."""
    training_rows: np.ndarray | None = None
    """The first rows of training, in order."""
    ngrams: NGrams | None = None
    """Counts of the training rows."""
    compared: Sequence[Compared] = ()
    exclude: tuple[int, ...] = ()
    """Ids (end of text) that random rows do not hold."""
    settings: BehaviourSettings = field(default_factory=BehaviourSettings)

    @property
    def on(self) -> dict[str, Any]:
        """The `params` of a value that is a mean over `rows`."""
        return {"rows": len(self.rows), "seq": self.rows.shape[1] - 1}

    @cached_property
    def predictions(self) -> Predictions:
        """The predictions of the model on `rows`.

        Cost: one forward pass, and one over log-probabilities for n-grams.
        """
        return predict(self.scorer, self.rows, self.ngrams)

    @cached_property
    def attention_rows(self) -> np.ndarray:
        """(rows, seq): the inputs of `attention`."""
        return spread_evenly(self.rows, self.settings.attention_rows)[:, :-1]

    @cached_property
    def attention(self) -> AttentionSummary | None:
        """Reductions of every head's attention; None where the scorer shows none, or there are no rows."""
        if not isinstance(self.scorer, AttentionScorer) or not len(self.rows):
            return None
        return summarise_attention(self.scorer, self.attention_rows)

    @cached_property
    def repeated(self) -> np.ndarray:
        """Random rows whose second half repeats the first; see `repeated_tokens`."""
        settings, vocab_size = self.settings, self.scorer.vocab_size
        length = min(settings.repeated_length, self.scorer.context_length // 2, vocab_size - len(set(self.exclude)))
        return repeated_tokens(vocab_size, length, settings.repeated_rows, settings.seed, self.exclude)

    @cached_property
    def objective(self) -> Objective | None:
        """The training loss as a function of the parameters, over the first `landscape_rows` of training.

        None where the scorer has no derivatives, or there are no such rows.
        """
        given = self.training_rows is not None and len(self.training_rows) > 0
        if not given or not isinstance(self.scorer, DifferentiableScorer):
            return None
        return language_objective(self.scorer, self.landscape_rows, self.settings.landscape_rows_at_once)

    @property
    def landscape_rows(self) -> np.ndarray:
        """The training rows of `objective`."""
        assert self.training_rows is not None
        return self.training_rows[: self.settings.landscape_rows]


def spread_evenly(rows: np.ndarray, limit: int) -> np.ndarray:
    """Returns at most `limit` rows, spread evenly, in their order."""
    return rows if len(rows) <= limit else rows[np.arange(limit) * len(rows) // limit]


def measured(value: float, n: int, p: int) -> Measurement:
    """Makes a measurement: `n_too_small` where n is 0, `nonfinite` where the value is NaN or infinite."""
    if n == 0:
        return undefined("n_too_small", n, p)
    if not math.isfinite(value):
        return undefined("nonfinite", n, p)
    return Measurement(float(value), "ok", int(n), int(p))


def undefined(status: str, n: int, p: int) -> Measurement:
    """Makes a measurement without a value; `status`, of STATUSES, says why there is none."""
    assert status in STATUSES
    return Measurement(None, status, int(n), int(p))
