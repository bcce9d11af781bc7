"""The inputs of the report: the outs of the other stages, read into one typed object, and the tables made of it."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from pico.config import Params
from pico.errors import PicoError
from pico.files import canonical_json, read_json
from pico.report.inputs.dynamics import Dynamics, Spectra, read_dynamics, read_spectra

LOSS_BINS = 80
"""Points of a smoothed loss curve: equal bins of log-step."""
EMBEDDINGS = ("embedding_proj.weight", "de_embedding_proj.weight")


@dataclass(frozen=True)
class ModelPaths:
    """The places of one model's outs; formats: docs/architecture.md."""

    name: str
    run: Path
    """`data/models/SCALE/MODEL`"""
    training: Path
    """The loss curve, CSV."""
    analysis: Path
    evaluation: Path
    export: Path


@dataclass(frozen=True)
class Inputs:
    """Everything that the report reads."""

    params: Params
    sources: Path
    provenance: Path
    gates: Path
    profile: Path
    models: tuple[ModelPaths, ...]


@dataclass(frozen=True)
class Training:
    """The loss curve: arrays of one length; `heldout_loss` is NaN where it was not measured. Losses in nats a token."""

    step: np.ndarray
    train_loss: np.ndarray
    heldout_loss: np.ndarray

    @property
    def smoothed(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps and training loss, each the mean in LOSS_BINS equal bins of log-step."""
        return binned(self.step, self.train_loss, LOSS_BINS)


@dataclass(frozen=True)
class Model:
    """One model of the suite."""

    name: str
    config: dict[str, Any]
    parameters: int
    embedding_parameters: int
    training: Training
    evaluations: list[dict[str, Any]]
    """Entries of results.json, by step."""
    dynamics: Dynamics
    samples: list[dict[str, str]]
    spectra: Spectra | None
    """Singular values of one layer's weight; None where the checkpoints don't have it."""
    seedless: str
    """Everything that the training depends on but the seed, and the model's name: equal for runs that differ by seed;
    "" where the checkpoint doesn't say."""

    @property
    def last(self) -> dict[str, Any]:
        """The evaluation of the last checkpoint."""
        return self.evaluations[-1]

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters without the input and output embeddings."""
        return self.parameters - self.embedding_parameters

    def benchmark(self, task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns steps, values and standard errors of one task; NaN for missing values, 0 for missing errors."""
        found = [(one["step"], one["benchmarks"][task]) for one in self.evaluations if task in one["benchmarks"]]
        errors = np.nan_to_num(floats([result["stderr"] for _, result in found]))
        return floats([step for step, _ in found]), floats([result["value"] for _, result in found]), errors


@dataclass(frozen=True)
class Suite:
    """All that the report shows."""

    params: Params
    sources: list[dict[str, Any]]
    provenance: dict[str, Any]
    gates: list[dict[str, Any]]
    models: list[Model]
    """In order of non-embedding parameters."""
    batch: str
    """The held-out batch whose activations are compared, in words for captions."""
    profile: dict[str, Any] = field(default_factory=dict)
    """Statistics of the documents, from the gates; empty where no page of the data is made."""

    @property
    def layers(self) -> int:
        """The largest number of layers of any model."""
        return max(model.config["n_layers"] for model in self.models)

    @cached_property
    def domains(self) -> list[str]:
        """Held-out domains, sorted; without `all`."""
        found = {domain for model in self.models for entry in model.evaluations for domain in entry["heldout"]}
        return sorted(found - {"all"})

    @cached_property
    def tasks(self) -> list[str]:
        """Benchmarks for which any model has a result, in the order of params, then by name."""
        found = {task for model in self.models for entry in model.evaluations for task in entry["benchmarks"]}
        order = [task.name for task in self.params.benchmarks.tasks]
        return sorted(found, key=lambda task: (order.index(task) if task in order else len(order), task))

    def unigram(self, domain: str = "all") -> float | None:
        """Returns bits per byte of the unigram baseline on held-out text; None where it was not computed."""
        return self.provenance.get("unigram", {}).get(domain)

    def chance(self, task: str) -> float | None:
        """Returns the chance level of a benchmark; None where no last checkpoint has a result."""
        return next((result["chance"] for result in self._last_results(task)), None)

    def metric(self, task: str) -> str:
        """Returns the name of the metric of a benchmark's results."""
        return next((result["metric"] for result in self._last_results(task)), "score")

    def examples(self, task: str) -> str:
        """Returns the number of examples that the last checkpoints were scored on: `n = 100`."""
        counts = sorted({result["n"] for result in self._last_results(task)})
        return f"n = {', '.join(map(str, counts))}" if counts else "not in the last checkpoint"

    def _last_results(self, task: str) -> list[dict[str, Any]]:
        return [model.last["benchmarks"][task] for model in self.models if task in model.last["benchmarks"]]


def binned(steps: np.ndarray, values: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean step and value in equal bins of log-step, without empty bins; values must be finite to count."""
    keep = np.isfinite(values) & (steps > 0)
    steps, values = steps[keep], values[keep]
    if not len(steps):
        return steps, values
    edges = np.geomspace(1, steps.max() + 1, bins + 1)
    places = np.digitize(steps, edges)
    order = np.unique(places)
    return (
        np.array([steps[places == place].mean() for place in order]),
        np.array([values[places == place].mean() for place in order]),
    )


def floats(values: Sequence[float | None]) -> np.ndarray:
    """Returns the values as float64, NaN where there is none."""
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def gather(inputs: Inputs) -> Suite:
    """Reads all inputs. Raises PicoError naming a file that is missing or cannot be read."""
    models = [_read_model(paths, inputs.params.learning_dynamics.layers) for paths in inputs.models]
    gates, captured = read_json(inputs.gates), inputs.params.learning_dynamics
    return Suite(
        params=inputs.params,
        sources=read_json(inputs.sources),
        provenance=read_json(inputs.provenance),
        gates=gates["gates"] if isinstance(gates, dict) else gates,
        models=sorted(models, key=lambda model: (model.non_embedding_parameters, model.name)),
        batch=f"a fixed held-out batch of {captured.batch_size} sequences at {captured.positions} positions each "
        f"(n = {captured.batch_size * captured.positions} rows)",
        profile=read_json(inputs.profile),
    )


def suite_table(suite: Suite) -> list[dict[str, Any]]:
    """Returns the contents of reports/suite.json: one entry a model, of its last checkpoint."""
    return [
        {
            "model": model.name,
            "parameters": model.parameters,
            "tokens": model.last["tokens"],
            "heldout_bits_per_byte": model.last["heldout"]["all"]["bits_per_byte"],
            "heldout_perplexity": model.last["heldout"]["all"]["perplexity"],
            "benchmarks": model.last["benchmarks"],
        }
        for model in suite.models
    ]


def suite_metrics(suite: Suite) -> dict[str, dict[str, Any]]:
    """Returns the same by model, flat, as `dvc metrics` reads it; of benchmarks their main value, by name."""
    return {
        entry["model"]: {name: value for name, value in entry.items() if name not in ("model", "benchmarks")}
        | {task: result["value"] for task, result in sorted(entry["benchmarks"].items()) if result["value"] is not None}
        for entry in suite_table(suite)
    }


def _read_model(paths: ModelPaths, captured: list[str]) -> Model:
    folders = sorted((paths.run / "checkpoints").glob("step_*"))
    if not folders:
        raise PicoError(f"{paths.name} has no checkpoint", where=str(paths.run), mend="run: dvc repro")
    config = read_json(folders[-1] / "config.json")
    counts = _parameter_counts(folders[-1] / "model.safetensors")
    if config.get("tied_embeddings"):  # one matrix under two names
        counts.pop(EMBEDDINGS[1], None)
    evaluations = sorted(read_json(paths.evaluation), key=lambda entry: entry["step"])
    if not evaluations:
        raise PicoError(f"{paths.name} was not evaluated", where=str(paths.evaluation), mend="run: dvc repro")
    return Model(
        name=paths.name,
        config=config,
        parameters=sum(counts.values()),
        embedding_parameters=sum(counts[name] for name in EMBEDDINGS if name in counts),
        training=_read_training(paths.training),
        evaluations=evaluations,
        dynamics=read_dynamics(paths.analysis),
        samples=read_json(paths.export / "samples.json"),
        spectra=read_spectra(folders, captured),
        seedless=_seedless(folders[-1] / "trainer.json"),
    )


def _seedless(path: Path) -> str:
    """Returns the identity of the training in trainer.json, without its seed and name, as canonical JSON."""
    identity = read_json(path).get("identity") if path.exists() else None
    if not identity:
        return ""
    settings = {key: value for key, value in identity.get("settings", {}).items() if key not in ("seed", "model")}
    return canonical_json({**identity, "settings": settings})


def _parameter_counts(path: Path) -> dict[str, int]:
    """Returns the elements of each tensor, from the header of a safetensors file alone."""
    with safe_open(path, framework="numpy") as file:
        return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)


def _read_training(path: Path) -> Training:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise PicoError(f"{path} does not exist", mend="run: dvc repro") from None

    def column(name: str) -> np.ndarray:
        return np.array([float(row[name]) if row.get(name) else math.nan for row in rows])

    return Training(**{name: column(name) for name in Training.__dataclass_fields__})
