"""The analysis table of one model, asked by metric, component, module, layer and head."""

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

from pico.analysis.convergence import ELSEWHERE
from pico.analysis.metrics.catalogue import STATES, metrics_of
from pico.errors import PicoError
from pico.files import canonical_json

COLUMNS = [
    "run", "step", "metric", "params", "target_step", "component", "data_type", "layer", "head", "split", "value",
    "status", "n", "p", "rank",
]  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """A metric over layers and steps: `values` (layers, steps), NaN where there is none."""

    layers: list[int]
    steps: list[int]
    values: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """A comparison of everything with everything: `values` (places, places), NaN where there is none."""

    places: list[int]
    """Steps or layers."""
    values: np.ndarray


@dataclass(frozen=True)
class Dynamics:
    """The analysis table of one model."""

    table: pa.Table
    """COLUMNS; `module` (the layer's suffix, or null) and `settings` (the rest of params); and `first`: whether the row
    is of the first configuration of its metric, the one that pictures show. Of a metric that compares, one target."""
    compared: pa.Table
    """COLUMNS, `module` and `target_layer`: comparisons with every step and layer of the same run, where there are."""

    def modules(self, metric: str, component: str, data_type: str) -> list[str]:
        """The captured modules for which there are values, sorted."""
        found = self._select(metric, component, data_type, None, None)["module"].unique().to_pylist()
        return sorted(module for module in found if module)

    def heads(self, metric: str, component: str, data_type: str) -> list[int]:
        """The heads for which there are values, ascending."""
        found = self._select(metric, component, data_type, None, None)["head"].unique().to_pylist()
        return sorted(head for head in found if head is not None)

    def grid(
        self,
        metric: str,
        component: str,
        data_type: str,
        *,
        split: str | None = None,
        module: str | None = None,
        head: int | None = None,
    ) -> Grid:
        """Mean over heads and over modules, unless one is named, per (layer, step); nulls don't count."""
        rows = self._select(metric, component, data_type, split, module)
        if head is not None:
            rows = rows.filter(pc.field("head") == head)
        elif rows["head"].null_count < len(rows):  # per head: what is measured on all heads together is another thing
            rows = rows.filter(pc.field("head").is_valid())
        means = rows.group_by(["layer", "step"]).aggregate([("value", "mean")])
        layers, steps = sorted(set(means["layer"].to_pylist())), sorted(set(means["step"].to_pylist()))
        values = np.full((len(layers), len(steps)), np.nan)
        for layer, step, value in zip(
            *(means[name].to_pylist() for name in ("layer", "step", "value_mean")), strict=True
        ):
            values[layers.index(layer), steps.index(step)] = math.nan if value is None else value
        return Grid(layers, steps, values)

    def curve(self, metric: str, combine: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps, and `combine` ("max", "mean") of a metric's values at each over whatever it was measured on."""
        rows = self.table.filter((pc.field("metric") == metric) & pc.field("first") & pc.field("value").is_valid())
        found = rows.group_by("step").aggregate([("value", combine)]).sort_by("step")
        return found["step"].to_numpy().astype(float), found[f"value_{combine}"].to_numpy()

    def shapes(self, metric: str, component: str, data_type: str, module: str | None) -> list[tuple[int, int]]:
        """The (rows, columns) that a metric looked at, columns being no more than the structural rank allows."""
        rows = self._select(metric, component, data_type, None, module)
        triples = zip(*(rows[name].to_pylist() for name in ("n", "p", "rank")), strict=True)
        return sorted({(n, columns(n, p, rank)) for n, p, rank in triples})

    def step_pairs(self, metric: str, component: str, split: str, module: str | None, layer: int) -> Pairs | None:
        """Similarity of every two steps of one layer, mirrored; None where they were compared with one alone."""
        rows = self._compared(metric, component, split, module).filter(
            (pc.field("layer") == layer) & (pc.field("target_layer") == layer)
        )
        return _pairs(rows, "step", "target_step")

    def layer_pairs(self, metric: str, component: str, split: str, module: str | None) -> Pairs | None:
        """Similarity of every two layers at the last step; None where there are no such comparisons."""
        rows = self._compared(metric, component, split, module)
        last = pc.max(rows["step"]).as_py()
        rows = rows.filter((pc.field("step") == last) & (pc.field("target_step") == last))
        return _pairs(rows, "layer", "target_layer")

    def _compared(self, metric: str, component: str, split: str, module: str | None) -> pa.Table:
        wanted = (pc.field("metric") == metric) & (pc.field("component") == component) & (pc.field("split") == split)
        wanted &= pc.field("head").is_null()
        return self.compared.filter(wanted & (pc.field("module") == module if module else pc.field("module").is_null()))

    def _select(self, metric: str, component: str, data_type: str, split: str | None, module: str | None) -> pa.Table:
        wanted = (pc.field("metric") == metric) & (pc.field("component") == component) & pc.field("first")
        wanted &= (pc.field("data_type") == data_type) & pc.field("layer").is_valid()
        if split is not None:
            wanted &= pc.field("split") == split
        if module is not None:
            wanted &= pc.field("module") == module
        return self.table.filter(wanted)

    @cached_property
    def steps(self) -> list[int]:
        """All steps that were analysed, ascending."""
        return sorted(self.table["step"].unique().to_pylist())


def columns(n: int, p: int, rank: int | None) -> int:
    """How many independent columns n x p data have: fewer than p where they are a product of narrow factors."""
    return rank if rank is not None and rank < min(n, p) else p


def read_dynamics(folder: Path) -> Dynamics:
    """Reads all checkpoints' tables. Raises PicoError where there are none."""
    files = sorted(folder.glob("step_*.parquet"))
    if not files:
        raise PicoError("there is no analysis", where=str(folder), mend="run: dvc repro")
    table = pa.concat_tables([_read(pq.ParquetFile(file)) for file in files])
    table = _with_settings(table.cast(_plain(table.schema)))
    own = table.filter(pc.field("target_run").is_null())
    same = own.filter((pc.field("target_layer") == pc.field("layer")) | pc.field("layer").is_null())
    main = same.filter(pa.array(_main_target(same), pa.bool_()))
    return Dynamics(
        main.append_column("first", pa.array(_first_configuration(main), pa.bool_())),
        own.filter(pc.field("target_step").is_valid()),
    )


def _read(file: pq.ParquetFile) -> pa.Table:
    """The columns; targets elsewhere are null where the table doesn't name them, since all is compared with its own."""
    table = file.read(COLUMNS)
    for name, kind in zip(ELSEWHERE, (pa.int64(), pa.string()), strict=True):
        named = name in file.schema_arrow.names
        column = file.read([name])[name].cast(kind) if named else pa.nulls(len(table), kind)
        table = table.append_column(name, column)
    return table


def _plain(schema: pa.Schema) -> pa.Schema:
    """The schema with dictionary-encoded columns as their values, so that tables of several files compare alike."""
    return pa.schema(
        [(field.name, field.type.value_type if pa.types.is_dictionary(field.type) else field.type) for field in schema]
    )


def _with_settings(table: pa.Table) -> pa.Table:
    """Takes `params` apart: module and settings; says target_layer of every row (its own, unless another is named)."""
    codes = pc.dictionary_encode(pc.fill_null(table["params"], "{}")).combine_chunks()
    parsed = [json.loads(text or "{}") for text in codes.dictionary.to_pylist()]

    def column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind).take(codes.indices)

    layers = [one.get("target_layer") for one in parsed]
    runs = [None if one.get("target_run") is None else str(one["target_run"]) for one in parsed]
    named = ("module", *ELSEWHERE)
    rest = [canonical_json({key: value for key, value in one.items() if key not in named}) for one in parsed]
    layer = pc.coalesce(table["target_layer"], column(layers, pa.int64()), table["layer"])
    run = pc.coalesce(table["target_run"], column(runs, pa.string()))
    return (
        table.drop_columns(list(ELSEWHERE))
        .append_column("module", column([one.get("module") for one in parsed], pa.string()))
        .append_column("target_layer", layer)
        .append_column("target_run", run)
        .append_column("settings", column(rest, pa.string()))
    )


def _main_target(table: pa.Table) -> np.ndarray:
    """Which rows compare with the checkpoint that the metric is made for (last, previous, first), or with none.

    Of a metric that was compared with none of those, the target that most rows have.
    """
    steps = np.array(table["step"].to_numpy(), float)
    target = np.array(pc.fill_null(pc.cast(table["target_step"], pa.float64()), math.nan).to_numpy())
    metrics = pc.dictionary_encode(table["metric"]).combine_chunks()
    codes = metrics.indices.to_numpy()
    every = np.unique(steps)
    wanted = {
        "first": np.full_like(steps, every[0]),
        "last": np.full_like(steps, every[-1]),
        "previous": np.concatenate([[math.nan], every])[np.searchsorted(every, steps)],
    }
    keep, known = np.isnan(target), metrics_of(STATES)
    for code, name in enumerate(metrics.dictionary.to_pylist()):
        own = codes == code
        kind = known[name].target if name in known else None
        chosen = own & (target == wanted.get(kind or "last", wanted["last"]))
        if not chosen.any() and (own & ~keep).any():
            found, counts = np.unique(target[own & ~keep], return_counts=True)
            chosen = own & (target == found[counts.argmax()])
        keep |= chosen
    return keep


def _first_configuration(table: pa.Table) -> list[bool]:
    """Of each (metric, component, module), rows of the first configuration: pictures show one."""
    names = ("metric", "component", "module", "settings")
    groups = table.group_by(list(names[:3])).aggregate([("settings", "min")])
    first = {tuple(group[name] for name in names[:3]): group["settings_min"] for group in groups.to_pylist()}
    rows = zip(*(table[name].to_pylist() for name in names), strict=True)
    return [first[metric, component, module] == settings for metric, component, module, settings in rows]


def _pairs(rows: pa.Table, one: str, other: str) -> Pairs | None:
    """The square of values; what was compared only one way round is mirrored, since CKA has no direction."""
    places = sorted(set(rows[one].to_pylist()) | set(rows[other].to_pylist()))
    met = {(a, b) for a, b in zip(rows[one].to_pylist(), rows[other].to_pylist(), strict=True) if a != b}
    if len(met) < max(2, len(places)):  # each against itself, or all against one: curves, not a square
        return None
    index = {place: at for at, place in enumerate(places)}
    values = np.full((len(places), len(places)), np.nan)
    for left, right, value in zip(*(rows[name].to_pylist() for name in (one, other, "value")), strict=True):
        values[index[left], index[right]] = math.nan if value is None else value
    return Pairs(places, np.where(np.isnan(values), values.T, values))
