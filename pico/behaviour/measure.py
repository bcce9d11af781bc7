"""Measures the behaviour of one model as rows of the analysis table, also of a checkpoint, as a task for any worker."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pico.analysis.engine.plugins import load_metric_files
from pico.analysis.engine.table import Row, make_row
from pico.analysis.metrics.registry import BEHAVIOUR, Measurement, Metric, default_metrics, get_metric
from pico.behaviour import attention, landscape, likelihood
from pico.behaviour.predictions import NGrams
from pico.behaviour.scorer import DifferentiableScorer, Scorer, as_scorer
from pico.behaviour.subject import BehaviourSettings, Compared, Subject, Value, spread_evenly
from pico.checkpoint import Checkpoint
from pico.data.tokens.loader import TokenRows, heldout_rows
from pico.errors import PicoError
from pico.files import canonical_json, read_json, sha256_file
from pico.identity import identity
from pico.model import Decoder, load_decoder
from pico.plugins import UserFile, file_hashes

_REGISTERED = (attention, landscape, likelihood)  # importing them registers their metrics


def chosen_metrics(names: Collection[str] | None) -> list[Metric]:
    """Returns the metrics of behaviour of those names, all default ones for None. Raises PicoError for unknown ones."""
    return [get_metric(name, BEHAVIOUR) for name in (default_metrics(BEHAVIOUR) if names is None else names)]


def measure_behaviour(
    model: Any,
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
    """Returns rows of the table (pico.analysis.engine.table) with component "model".

    model: a Decoder or a Scorer. rows: held-out rows (n, seq + 1). training_rows: the first rows of training, in
    order, for memorisation and the landscape. ngrams: of the training rows, for frequency bins and the n-gram
    divergences. compared: other models. exclude: ids (end of text) that random rows do not hold. Metrics whose input
    is not given (training rows, n-grams, other models) or whose interface a Scorer does not have (attention,
    derivatives) have no rows.

    A pure function: equal input gives equal rows for an equal number of threads, and the model is left as it was.
    Cost, in forward passes over a row: heldout_rows x (1 + models compared), 2 x memorised_rows, and
    landscape_rows x (about 20 for critical sharpness, 5 for each of 10 to 30 Hessian-vector products of the largest
    eigenvalue and `trace_probes` of the trace). Memory: one row's activations and their second derivatives.
    Raises PicoError for rows that the model cannot read, and for unknown metrics.
    """
    settings = settings or BehaviourSettings()
    scorer = as_scorer(model)
    rows = spread_evenly(rows, settings.heldout_rows)
    subject = Subject(scorer, rows, training_rows, ngrams, compared, exclude, settings)
    point = {"run": run, "step": step, "tokens": tokens, "input_dtype": _dtype(scorer)}
    found: list[Row] = []
    for metric in chosen_metrics(settings.metrics):
        for value in metric.function(subject):
            if not isinstance(value, Value):
                raise PicoError(
                    f"metric {metric.name!r} gave {value!r}, not a pico.behaviour.Value",
                    mend="correct it; docs/custom-metrics.md shows how a metric of behaviour is written",
                )
            found.append(_row(metric, metric.name, value, value.measurement, point))
            if value.standard_error is not None:
                found.append(_row(metric, f"{metric.name}_standard_error", value, value.standard_error, point))
    return found


def _row(metric: Metric, name: str, value: Value, found: Measurement, point: dict[str, Any]) -> Row:
    return make_row(
        found,
        metric=name,
        params=canonical_json(value.params),
        target_step=value.target_step,
        target_run=value.target_run,
        component="model",
        data_type=metric.data_types[0],
        layer=value.layer,
        head=value.head,
        split=value.split,
        **point,
    )


def _dtype(scorer: Scorer) -> str:
    """Returns the type of the weights, or of the log-probabilities where there are none to be seen."""
    parameters = scorer.parameters() if isinstance(scorer, DifferentiableScorer) else ()
    return str(parameters[0].dtype).removeprefix("torch.") if parameters else "float32"


@dataclass(frozen=True)
class BehaviourTask:
    """The measurement of one checkpoint. Plain values, so that it can be sent to any worker."""

    run: str
    """The model's name, as the table has it."""
    folder: Path
    """The checkpoint."""
    tokens: Path
    """`data/tokens/`: held-out rows, training rows and the tokenizer's end of text."""
    targets: dict[str, Path] = field(default_factory=dict)
    """"last", "previous" -> a checkpoint of the same run, for kl_to_checkpoint."""
    seeds: dict[str, Path] = field(default_factory=dict)
    """Name of a run with another seed -> its checkpoint, for kl_to_seed."""
    settings: BehaviourSettings = field(default_factory=BehaviourSettings)
    device: str = "cpu"
    """The device of the model: "cpu" or "cuda"."""
    files: tuple[UserFile, ...] = ()
    """The user's own metrics."""


def behaviour_identity(tokens: Path, settings: BehaviourSettings, files: Sequence[UserFile] = ()) -> dict[str, Any]:
    """Returns all that a checkpoint's rows depend on besides the checkpoints and the device.

    Loads the files. Raises PicoError for metrics that are neither the project's nor theirs.
    """
    load_metric_files(files)
    data = [tokens / "provenance.json", *tokens.glob("train/*.parquet"), *tokens.glob("heldout/*.parquet")]
    return {
        "settings": asdict(settings) | {"metrics": sorted(metric.name for metric in chosen_metrics(settings.metrics))},
        "data": {path.relative_to(tokens).as_posix(): sha256_file(path) for path in sorted(data)},
        "files": file_hashes(files),
        **identity(__name__),
    }


def measure_checkpoint(task: BehaviourTask) -> list[Row]:
    """Measures one checkpoint; see `measure_behaviour`. Raises PicoError for missing or unreadable files.

    Memory: the checkpoint, one other at a time, and the counts of `ngram_rows` training rows.
    """
    load_metric_files(task.files)
    checkpoint, settings = Checkpoint(task.folder), task.settings
    decoder = _load(task.folder, task.device)
    training = TokenRows(task.tokens / "train")
    counted = training.rows(spread_evenly(np.arange(training.n_rows), settings.ngram_rows))
    first = training.rows(np.arange(min(training.n_rows, max(settings.memorised_rows, settings.landscape_rows))))
    return measure_behaviour(
        decoder,
        np.concatenate([rows for rows, _ in heldout_rows(task.tokens).values()]),
        run=task.run,
        step=checkpoint.step,
        tokens=int(checkpoint.trainer["tokens"]),
        training_rows=first,
        ngrams=NGrams(counted, decoder.config.vocab_size),
        compared=[
            Compared(partial(_load, folder, task.device), Checkpoint(folder).step, name, other_run=others is task.seeds)
            for others in (task.targets, task.seeds)
            for name, folder in sorted(others.items())
        ],
        exclude=(int(read_json(task.tokens / "tokenizer" / "meta.json")["eos_id"]),),
        settings=settings,
    )


def _load(folder: Path, device: str) -> Decoder:
    return load_decoder(Checkpoint(folder)).to(device)
