"""What the report is made from, gathered from the outs of the other stages into one typed object."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import safe_open

from pico.config import Params
from pico.errors import PicoError
from pico.files import read_json

EMBEDDINGS = ("embedding_proj.weight", "de_embedding_proj.weight")
ANALYSIS_COLUMNS = ["step", "metric", "params", "component", "data_type", "layer", "head", "split", "value"]


@dataclass(frozen=True)
class ModelPaths:
    """Where the outs of one model lie; formats: docs/architecture.md."""

    name: str
    run: Path
    """`data/models/SCALE/MODEL`"""
    training: Path
    """The loss curve, CSV."""
    analysis: Path
    evaluation: Path
    """`results.json`"""
    export: Path


@dataclass(frozen=True)
class Inputs:
    """Everything that the report reads."""

    params: Params
    sources: Path
    provenance: Path
    gates: Path
    models: tuple[ModelPaths, ...]


@dataclass(frozen=True)
class Grid:
    """A metric over layers and steps: `values` (layers, steps), NaN where there is none."""

    layers: list[int]
    steps: list[int]
    values: np.ndarray


@dataclass(frozen=True)
class Dynamics:
    """The analysis table of one model, asked by metric."""

    table: pa.Table
    """ANALYSIS_COLUMNS, and `module` (the layer's suffix, or null)."""

    def modules(self, metric: str, component: str, data_type: str) -> list[str]:
        """The captured modules for which there are values, sorted."""
        found = self._select(metric, component, data_type, None, None)["module"].unique().to_pylist()
        return sorted(module for module in found if module)

    def grid(
        self, metric: str, component: str, data_type: str, *, split: str | None = None, module: str | None = None
    ) -> Grid:
        """Mean over heads, and over modules unless one is named, per (layer, step); nulls don't count."""
        rows = self._select(metric, component, data_type, split, module)
        if rows["head"].null_count < len(rows):  # per head: what is measured on all heads together is another thing
            rows = rows.filter(pc.field("head").is_valid())
        means = rows.group_by(["layer", "step"]).aggregate([("value", "mean")])
        layers, steps = sorted(set(means["layer"].to_pylist())), sorted(set(means["step"].to_pylist()))
        values = np.full((len(layers), len(steps)), np.nan)
        for layer, step, value in zip(
            *(means[name].to_pylist() for name in ("layer", "step", "value_mean")), strict=True
        ):
            values[layers.index(layer), steps.index(step)] = math.nan if value is None else value
        return Grid(layers, steps, values)

    def _select(self, metric: str, component: str, data_type: str, split: str | None, module: str | None) -> pa.Table:
        wanted = (pc.field("metric") == metric) & (pc.field("component") == component)
        wanted &= (pc.field("data_type") == data_type) & pc.field("layer").is_valid()
        if split is not None:
            wanted &= pc.field("split") == split
        if module is not None:
            wanted &= pc.field("module") == module
        return self.table.filter(wanted)


@dataclass(frozen=True)
class Training:
    """The loss curve: arrays of one length; `heldout_loss` is NaN where it was not measured. Losses in nats a token."""

    step: np.ndarray
    tokens: np.ndarray
    learning_rate: np.ndarray
    train_loss: np.ndarray
    gradient_norm: np.ndarray
    heldout_loss: np.ndarray


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

    @property
    def last(self) -> dict[str, Any]:
        """The evaluation of the last checkpoint."""
        return self.evaluations[-1]

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters without the input and output embeddings."""
        return self.parameters - self.embedding_parameters


@dataclass(frozen=True)
class Suite:
    """All that the report shows."""

    params: Params
    sources: list[dict[str, Any]]
    provenance: dict[str, Any]
    gates: list[dict[str, Any]]
    models: list[Model]
    """In order of non-embedding parameters."""

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
        """Bits per byte of the unigram baseline on held-out text; None where it was not computed."""
        return self.provenance.get("unigram", {}).get(domain)

    def chance(self, task: str) -> float | None:
        """The chance level of a benchmark."""
        found = [model.last["benchmarks"][task]["chance"] for model in self.models if task in model.last["benchmarks"]]
        return found[0] if found else None


def gather(inputs: Inputs) -> Suite:
    """Reads all inputs. Raises PicoError naming a file that is missing or cannot be read."""
    models = [_read_model(paths) for paths in inputs.models]
    gates = read_json(inputs.gates)
    return Suite(
        params=inputs.params,
        sources=read_json(inputs.sources),
        provenance=read_json(inputs.provenance),
        gates=gates["gates"] if isinstance(gates, dict) else gates,
        models=sorted(models, key=lambda model: (model.non_embedding_parameters, model.name)),
    )


def suite_table(suite: Suite) -> list[dict[str, Any]]:
    """The contents of reports/suite.json: one entry a model, of its last checkpoint."""
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
    """The same by model, and flat, as `dvc metrics` reads it; benchmarks by name, with their main value alone."""
    return {
        entry["model"]: {name: value for name, value in entry.items() if name not in ("model", "benchmarks")}
        | {task: result["value"] for task, result in sorted(entry["benchmarks"].items()) if result["value"] is not None}
        for entry in suite_table(suite)
    }


def _read_model(paths: ModelPaths) -> Model:
    folders = sorted((paths.run / "checkpoints").glob("step_*"))
    if not folders:
        raise PicoError(f"{paths.name} has no checkpoint", where=str(paths.run), mend="run: dvc repro")
    counts = _parameter_counts(folders[-1] / "model.safetensors")
    evaluations = sorted(read_json(paths.evaluation), key=lambda entry: entry["step"])
    if not evaluations:
        raise PicoError(f"{paths.name} was not evaluated", where=str(paths.evaluation), mend="run: dvc repro")
    return Model(
        name=paths.name,
        config=read_json(folders[-1] / "config.json"),
        parameters=sum(counts.values()),
        embedding_parameters=sum(counts[name] for name in EMBEDDINGS),
        training=_read_training(paths.training),
        evaluations=evaluations,
        dynamics=_read_dynamics(paths.analysis),
        samples=read_json(paths.export / "samples.json"),
    )


def _parameter_counts(path: Path) -> dict[str, int]:
    """Elements of each tensor, from the header of a safetensors file alone."""
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


def _read_dynamics(folder: Path) -> Dynamics:
    files = sorted(folder.glob("step_*.parquet"))
    if not files:
        raise PicoError("there is no analysis", where=str(folder), mend="run: dvc repro")
    table = pa.concat_tables([pq.ParquetFile(file).read(ANALYSIS_COLUMNS) for file in files])
    return Dynamics(_one_configuration(table.cast(_plain(table.schema))))


def _plain(schema: pa.Schema) -> pa.Schema:
    """The schema with dictionary-encoded columns as their values, so that tables of several files compare alike."""
    return pa.schema(
        [(field.name, field.type.value_type if pa.types.is_dictionary(field.type) else field.type) for field in schema]
    )


def _one_configuration(table: pa.Table) -> pa.Table:
    """Adds `module`, and keeps of each (metric, component, module) the first configuration: the report draws one."""
    first: dict[tuple[str, str, str | None], str] = {}
    modules: dict[str | None, str | None] = {}
    columns: Sequence[list[Any]] = [table[name].to_pylist() for name in ("metric", "component", "params")]
    for params in sorted({params or "" for params in columns[2]}):
        modules[params] = json.loads(params or "{}").get("module")
    for metric, component, params in sorted({(m, c, p or "") for m, c, p in zip(*columns, strict=True)}):
        first.setdefault((metric, component, modules[params]), params)
    keep = [
        first[metric, component, modules[params or ""]] == (params or "")
        for metric, component, params in zip(*columns, strict=True)
    ]
    named = pa.array([modules[params or ""] for params in columns[2]], pa.string())
    return table.append_column("module", named).filter(pa.array(keep, pa.bool_()))
