"""Everything that is measured of one model's behaviour and landscape, as rows of the analysis table."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pico.analysis.engine.layer import Row
from pico.analysis.metrics.registry import Measurement
from pico.behaviour.attention import (
    HeadMeasurement,
    attention_entropy,
    induction_loss_score,
    induction_score,
    max_attention_logit,
    repeated_tokens,
    summarise_attention,
)
from pico.behaviour.catalogue import CATALOGUE
from pico.behaviour.landscape import critical_sharpness, hessian_trace, top_eigenvalue
from pico.behaviour.likelihood import (
    expected_calibration_error,
    in_context_score,
    kl_divergence,
    kl_to_bigram,
    kl_to_unigram,
    mean_nll,
    nll_by_frequency,
    nll_by_position,
)
from pico.behaviour.local_learning import local_learning_coefficient
from pico.behaviour.memorisation import CONTINUATION, PROMPT, memorisation
from pico.behaviour.ngrams import NGrams
from pico.behaviour.objective import language_objective
from pico.behaviour.predictions import predict
from pico.behaviour.scorer import AttentionScorer, DifferentiableScorer, Scorer, as_scorer
from pico.behaviour.settings import BehaviourSettings
from pico.errors import PicoError
from pico.files import canonical_json

WHOLE_MODEL = -1
"""The table's `layer` of values that belong to no layer."""


@dataclass(frozen=True)
class Compared:
    """Another model whose predictions are compared with."""

    metric: str
    """kl_to_checkpoint or kl_to_seed."""
    load: Callable[[], Any]
    """Gives anything that `as_scorer` takes; called when its turn comes, so that one is in memory at a time."""
    step: int
    """Its step: the table's `target_step`."""
    name: str
    """What it is: "last" or "previous", or the name of the other run."""


@dataclass(frozen=True)
class _Value:
    """A measurement and what sets it apart from others of its metric."""

    metric: str
    measurement: Measurement
    params: dict[str, Any]
    split: str | None
    layer: int = WHOLE_MODEL
    head: int | None = None
    target_step: int | None = None
    target_run: str | None = None


def measure_behaviour(
    decoder: Any,
    rows: np.ndarray,
    *,
    run: str,
    step: int,
    tokens: int,
    training_rows: np.ndarray | None = None,
    ngrams: NGrams | None = None,
    compared: Sequence[Compared] = (),
    exclude: tuple[int, ...] = (),
    settings: BehaviourSettings | None = None,
) -> list[Row]:
    """Rows of the table (pico.analysis.engine.table): component "model", data_type "behaviour" or "landscape".

    decoder: a Decoder, a Hugging Face causal LM or a Scorer. rows: held-out rows (n, seq + 1). training_rows: the first
    rows of training, in order, for memorisation and the landscape. ngrams: of the training rows, for frequency bins and
    the n-gram divergences. compared: other models. exclude: ids (end of text) that random rows do not hold.
    `layer` is -1 but for values of one head. `split` is val, train, or null for made-up rows. `params` holds the
    settings of each value, so that no two share a key. Metrics whose input is not given (training rows, n-grams, other
    models) or whose interface a Scorer does not have (attention, derivatives) have no rows.

    A pure function: equal input gives equal rows for an equal number of threads, and the model is left as it was.
    Cost, in forward passes over a row: heldout_rows x (1 + models compared), 2 x memorised_rows, and
    landscape_rows x (about 20 for critical sharpness, 5 for each of 10 to 30 Hessian-vector products of the largest
    eigenvalue and `trace_probes` of the trace). Memory: one row's activations and their second derivatives.
    Raises PicoError for rows that the model cannot read.
    """
    settings = settings or BehaviourSettings()
    scorer = as_scorer(decoder)
    rows = spread_evenly(rows, settings.heldout_rows)
    values = [*_predictions(scorer, rows, ngrams, settings), *_divergences(scorer, rows, compared, settings)]
    values += [*_attention(scorer, rows, exclude, settings), *_memorisation(scorer, rows, training_rows, settings)]
    if training_rows is not None and isinstance(scorer, DifferentiableScorer):
        values += _landscape(scorer, training_rows[: settings.landscape_rows], settings)
    dtype = _dtype(scorer)
    return [_row(value, run, step, tokens, dtype) for value in values]


def spread_evenly(rows: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` rows, spread evenly, in their order."""
    return rows if len(rows) <= limit else rows[np.arange(limit) * len(rows) // limit]


def _predictions(
    scorer: Scorer, rows: np.ndarray, ngrams: NGrams | None, settings: BehaviourSettings
) -> Iterator[_Value]:
    """Likelihood, calibration and n-gram divergences, all from one pass."""
    wanted = set(settings.metrics)
    of_ngrams = wanted & {"kl_to_unigram", "kl_to_bigram"}
    if not of_ngrams | wanted & {
        "nll", "nll_by_position", "nll_by_frequency", "in_context_score", "expected_calibration_error",
    }:  # fmt: skip
        return
    found = predict(scorer, rows, ngrams if of_ngrams else None)
    on = {"rows": len(rows), "seq": found.nll.shape[1]}
    counted = None if ngrams is None else on | {"counted_tokens": ngrams.n_tokens}
    if "nll" in wanted:
        yield _Value("nll", mean_nll(found), on, "val")
    if "nll_by_position" in wanted:
        for one in nll_by_position(found):
            yield _Value("nll_by_position", one.measurement, on | {"bin": [one.low, one.high]}, "val")
    if "nll_by_frequency" in wanted and ngrams is not None and counted is not None:
        for one in nll_by_frequency(found, ngrams.frequency):
            yield _Value("nll_by_frequency", one.measurement, counted | {"bin": [one.low, one.high]}, "val")
    if "in_context_score" in wanted:
        half_width = int(settings.in_context_half_width * on["seq"])
        yield _Value("in_context_score", in_context_score(found, half_width), on | {"half_width": half_width}, "val")
    if "expected_calibration_error" in wanted:
        for binning in ("width", "mass"):
            bins = settings.calibration_bins
            error = expected_calibration_error(found.confidence, found.correct, bins, binning, found.vocab_size)
            yield _Value("expected_calibration_error", error, on | {"bins": bins, "binning": binning}, "val")
    if counted is not None:
        for name, metric in (("kl_to_unigram", kl_to_unigram), ("kl_to_bigram", kl_to_bigram)):
            if name in wanted:
                yield _Value(name, metric(found), counted, "val")


def _divergences(
    scorer: Scorer, rows: np.ndarray, compared: Sequence[Compared], settings: BehaviourSettings
) -> Iterator[_Value]:
    for other in compared:
        if other.metric not in ("kl_to_checkpoint", "kl_to_seed"):
            raise PicoError(f"{other.metric!r} does not compare two models", mend="kl_to_checkpoint or kl_to_seed")
        if other.metric in settings.metrics:
            divergence = kl_divergence(scorer, as_scorer(other.load()), rows)
            params = {"rows": len(rows), "seq": rows.shape[1] - 1, "target": other.name}
            target_run = other.name if other.metric == "kl_to_seed" else None
            yield _Value(other.metric, divergence, params, "val", target_step=other.step, target_run=target_run)


def _attention(
    scorer: Scorer, rows: np.ndarray, exclude: tuple[int, ...], settings: BehaviourSettings
) -> Iterator[_Value]:
    """What heads do on held-out rows and on repeated random tokens."""
    wanted = set(settings.metrics)
    length = min(settings.repeated_length, scorer.context_length // 2, scorer.vocab_size - len(set(exclude)))
    repeated = repeated_tokens(scorer.vocab_size, length, settings.repeated_rows, settings.seed, exclude)
    random = {"rows": len(repeated), "length": length, "seed": settings.seed}
    if "induction_loss_score" in wanted:
        yield _Value("induction_loss_score", induction_loss_score(scorer, repeated), random, None)
    if not isinstance(scorer, AttentionScorer):
        return
    if "induction_score" in wanted:
        yield from _by_head("induction_score", induction_score(scorer, repeated), random, None)
    if wanted & {"attention_entropy", "max_attention_logit"} and len(rows):
        seen = spread_evenly(rows, settings.attention_rows)[:, :-1]
        on = {"rows": len(seen), "seq": seen.shape[1]}
        summary = summarise_attention(scorer, seen)
        for name, metric in (("attention_entropy", attention_entropy), ("max_attention_logit", max_attention_logit)):
            if name in wanted:
                yield from _by_head(name, metric(summary), on, "val")


def _by_head(metric: str, found: list[HeadMeasurement], params: dict[str, Any], split: str | None) -> Iterator[_Value]:
    for one in found:
        yield _Value(metric, one.measurement, params, split, one.layer, one.head)


def _memorisation(
    scorer: Scorer, rows: np.ndarray, training_rows: np.ndarray | None, settings: BehaviourSettings
) -> Iterator[_Value]:
    """Of training rows, and of held-out rows: what any model of the language continues correctly."""
    if "memorisation" not in settings.metrics or training_rows is None:
        return
    lengths = {"prompt": PROMPT, "continuation": CONTINUATION}
    for split, given in (("train", training_rows), ("val", rows)):
        taken = given[: settings.memorised_rows]
        yield _Value("memorisation", memorisation(scorer, taken), lengths | {"rows": len(taken)}, split)


def _landscape(scorer: DifferentiableScorer, rows: np.ndarray, settings: BehaviourSettings) -> Iterator[_Value]:
    """Curvature of the training loss over a few rows."""
    wanted = {name for name in settings.metrics if CATALOGUE[name].data_type == "landscape"}
    if not wanted or not len(rows):
        return
    objective = language_objective(scorer, rows, settings.landscape_rows_at_once)
    on = {"rows": len(rows), "seq": rows.shape[1] - 1, "rows_at_once": settings.landscape_rows_at_once}
    seeded = on | {"seed": settings.seed}
    if "critical_sharpness" in wanted:
        yield _Value("critical_sharpness", critical_sharpness(objective), on | {"direction": "gradient"}, "train")
    if "hessian_top_eigenvalue" in wanted:
        tolerance, krylov = settings.hessian_tolerance, settings.krylov
        top = top_eigenvalue(objective, seed=settings.seed, tolerance=tolerance, krylov=krylov)
        yield _Value("hessian_top_eigenvalue", top, seeded | {"tolerance": tolerance, "krylov": krylov}, "train")
    if "hessian_trace" in wanted:
        trace = hessian_trace(objective, probes=settings.trace_probes, seed=settings.seed)
        params = seeded | {"probes": settings.trace_probes}
        yield _Value("hessian_trace", trace.trace, params, "train")
        yield _Value("hessian_trace_standard_error", trace.standard_error, params, "train")
    if "local_learning_coefficient" in wanted:
        found = local_learning_coefficient(objective, settings.langevin, seed=settings.seed)
        params = seeded | settings.langevin.to_dict() | {"n_beta": found.n_beta}
        yield _Value("local_learning_coefficient", found.coefficient, params, "train")
        yield _Value("local_learning_coefficient_standard_error", found.standard_error, params, "train")


def _row(value: _Value, run: str, step: int, tokens: int, dtype: str) -> Row:
    found = value.measurement
    return {
        "run": run,
        "step": step,
        "tokens": tokens,
        "metric": value.metric,
        "params": canonical_json(value.params),
        "target_step": value.target_step,
        "target_run": value.target_run,
        "target_layer": None,
        "component": "model",
        "data_type": CATALOGUE[value.metric].data_type,
        "layer": value.layer,
        "head": value.head,
        "split": value.split,
        "value": found.value,
        "status": found.status,
        "n": found.n,
        "p": found.p,
        "rank": found.rank,
        "input_dtype": dtype,
    }


def _dtype(scorer: Scorer) -> str:
    """The type of the weights, or of the log-probabilities where there are none to be seen."""
    parameters = scorer.parameters() if isinstance(scorer, DifferentiableScorer) else ()
    return str(parameters[0].dtype).removeprefix("torch.") if parameters else "float32"
