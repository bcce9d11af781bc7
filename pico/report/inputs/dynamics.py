"""The learning dynamics of one model: its analysis table, asked by metric and place, and the spectra of its weights."""

import json
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import safe_open

from pico.analysis.metrics.catalogue import STATES, independence_null, metrics_of
from pico.analysis.metrics.matrix import singular_values
from pico.errors import PicoError
from pico.files import canonical_json

COLUMNS = [
    "run", "step", "metric", "params", "target_step", "target_run", "target_layer", "component", "data_type", "layer",
    "head", "split", "value", "status", "n", "p", "rank",
]  # fmt: skip
"""The columns of pico.analysis.engine.table that are read."""
CKA = ("debiased_cka", "linear_cka")
"""The estimates of CKA that the report shows: the first of these that was computed."""
HELDOUT_SPLIT = "val"
"""The split whose activations are shown."""
SPECTRA_STEPS = 6
"""Checkpoints at most whose spectra are shown, spread over log-step."""
NULL_ENTRIES = 2**20
"""Entries of a matrix up to which an independence null is sampled; larger ones have one only in closed form."""


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
    """COLUMNS; `module` (the layer's suffix, or null) and `settings` (the rest of
    params); and `first`, true for the first configuration of each metric, the one that pictures show. Of a metric that
    compares, the comparisons with one target."""
    compared: pa.Table
    """The same columns but `first`: comparisons with every step and layer of the same run, where there are any."""

    def modules(self, metric: str, component: str, data_type: str) -> list[str]:
        """Returns the captured modules for which there are values, sorted."""
        found = self.select(metric, component, data_type)["module"].unique().to_pylist()
        return sorted(module for module in found if module)

    def heads(self, metric: str, component: str, data_type: str) -> list[int]:
        """Returns the heads for which there are values, ascending."""
        found = self.select(metric, component, data_type)["head"].unique().to_pylist()
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
        """Returns the mean over heads and modules, unless one is named, per (layer, step); nulls don't count."""
        rows = self.select(metric, component, data_type, split, module)
        if head is not None:
            rows = rows.filter(pc.field("head") == head)
        elif rows["head"].null_count < len(rows):  # per head: a measurement on all heads together is another thing
            rows = rows.filter(pc.field("head").is_valid())
        means = rows.group_by(["layer", "step"]).aggregate([("value", "mean")])
        layers, at = np.unique(means["layer"].to_numpy(), return_inverse=True)
        steps, column = np.unique(means["step"].to_numpy(), return_inverse=True)
        values = np.full((len(layers), len(steps)), np.nan)
        values[at, column] = means["value_mean"].to_numpy()
        return Grid(layers.tolist(), steps.tolist(), values)

    def curve(self, metric: str, combine: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the steps, and at each `combine` ("max", "mean") of all values of a metric."""
        rows = self.table.filter((pc.field("metric") == metric) & pc.field("first") & pc.field("value").is_valid())
        found = rows.group_by("step").aggregate([("value", combine)]).sort_by("step")
        return found["step"].to_numpy().astype(float), found[f"value_{combine}"].to_numpy()

    def shape(self, metric: str, component: str, data_type: str, module: str | None) -> tuple[int, int]:
        """Returns the largest (rows, independent columns) of the data behind a metric's values."""
        rows = self.select(metric, component, data_type, None, module)
        triples = zip(*(rows[name].to_pylist() for name in ("n", "p", "rank")), strict=True)
        return max((n, independent_columns(n, p, rank)) for n, p, rank in triples)

    def step_pairs(self, metric: str, component: str, split: str, module: str | None, layer: int) -> Pairs | None:
        """Returns the similarity of every two steps of one layer; None where each was compared with one step alone."""
        rows = self._compared(metric, component, split, module).filter(
            (pc.field("layer") == layer) & (pc.field("target_layer") == layer)
        )
        return _pairs(rows, "step", "target_step")

    def layer_pairs(self, metric: str, component: str, split: str, module: str | None) -> Pairs | None:
        """Returns the similarity of every two layers at the last step; None where there are no such comparisons."""
        rows = self._compared(metric, component, split, module)
        last = pc.max(rows["step"]).as_py()
        rows = rows.filter((pc.field("step") == last) & (pc.field("target_step") == last))
        return _pairs(rows, "layer", "target_layer")

    def select(
        self, metric: str, component: str, data_type: str, split: str | None = None, module: str | None = None
    ) -> pa.Table:
        """Returns the rows of the first configuration of a metric; of all splits and modules, unless one is named."""
        wanted = (pc.field("metric") == metric) & (pc.field("component") == component) & pc.field("first")
        wanted &= (pc.field("data_type") == data_type) & pc.field("layer").is_valid()
        if split is not None:
            wanted &= pc.field("split") == split
        if module is not None:
            wanted &= pc.field("module") == module
        return self.table.filter(wanted)

    @cached_property
    def cka(self) -> str | None:
        """The estimate of CKA (of `CKA`) that was computed on activations; None where there is none."""
        return next((name for name in CKA if self.modules(name, "simple", "activations")), None)

    def _compared(self, metric: str, component: str, split: str, module: str | None) -> pa.Table:
        wanted = (pc.field("metric") == metric) & (pc.field("component") == component) & (pc.field("split") == split)
        wanted &= pc.field("head").is_null()
        return self.compared.filter(wanted & (pc.field("module") == module if module else pc.field("module").is_null()))


def read_dynamics(folder: Path) -> Dynamics:
    """Reads all checkpoints' tables. Raises PicoError where there are none, or one cannot be read."""
    files = sorted(folder.glob("step_*.parquet"))
    if not files:
        raise PicoError("there is no analysis", where=str(folder), mend="run: dvc repro")
    # Not by pico.analysis.read_table, which imports torch: that takes longer than all reading.
    try:
        table = _with_settings(pa.concat_tables([pq.ParquetFile(file).read(COLUMNS) for file in files]))
    except (pa.ArrowException, OSError) as error:
        raise PicoError(f"the analysis cannot be read: {error}", where=str(folder), mend="run: dvc repro") from error
    own = table.filter(pc.field("target_run").is_null())
    same = own.filter((pc.field("target_layer") == pc.field("layer")) | pc.field("layer").is_null())
    main = same.filter(pa.array(_main_target(same), pa.bool_()))
    return Dynamics(
        main.append_column("first", pa.array(_first_configuration(main), pa.bool_())),
        own.filter(pc.field("target_step").is_valid()),
    )


def independent_columns(n: int, p: int, rank: int | None) -> int:
    """Returns the independent columns of (n, p) data: fewer than p where they are a product of narrow factors."""
    return rank if rank is not None and rank < min(n, p) else p


@lru_cache(maxsize=1024)
def null_level(metric: str, n: int, p: int) -> float | None:
    """Returns the mean of a comparison for independent Gaussian data of n rows and p columns.

    None where the metric compares nothing, and where it would have to be sampled at too great a cost. Closed forms:
    linear CKA p / (n + p); the debiased estimators 0; mutual kNN k / (n - 1). A test holds them to the sampled ones.
    """
    known = metrics_of(STATES).get(metric)
    if known is None or known.target is None or known.elementwise or "activations" not in known.data_types:
        return None
    if metric == "linear_cka":
        return p / (n + p)
    if metric in ("debiased_cka", "minibatch_cka"):
        return 0.0
    if metric == "mutual_knn":
        return known.parameters["k"] / (n - 1)
    if n * max(n, p) > NULL_ENTRIES:
        return None
    try:
        return float(independence_null(metric, n, p, draws=5).mean())
    except PicoError:  # the metric itself refuses data of this shape
        return None


def _with_settings(table: pa.Table) -> pa.Table:
    """Takes `params` apart into module and settings; names the target layer of every row (its own by default)."""
    codes = pc.dictionary_encode(table["params"]).combine_chunks()
    parsed = [json.loads(text) for text in codes.dictionary.to_pylist()]
    rest = [canonical_json({key: value for key, value in one.items() if key != "module"}) for one in parsed]
    place = table.schema.get_field_index("target_layer")
    return (
        table.set_column(place, "target_layer", pc.coalesce(table["target_layer"], table["layer"]))
        .append_column("module", pa.array([one.get("module") for one in parsed], pa.string()).take(codes.indices))
        .append_column("settings", pa.array(rest, pa.string()).take(codes.indices))
    )


def _main_target(table: pa.Table) -> np.ndarray:
    """Returns a mask of rows: those that compare nothing, or with the checkpoint that their metric is made for.

    Of a metric that was never compared with that checkpoint, the target that most rows have.
    """
    steps = np.array(table["step"].to_numpy(), float)
    target = np.array(table["target_step"].to_numpy(), float)
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
    """Returns a mask of the rows of the first configuration of each (metric, component, module)."""
    names = ("metric", "component", "module", "settings")
    groups = table.group_by(list(names[:3])).aggregate([("settings", "min")])
    first = {tuple(group[name] for name in names[:3]): group["settings_min"] for group in groups.to_pylist()}
    rows = zip(*(table[name].to_pylist() for name in names), strict=True)
    return [first[metric, component, module] == settings for metric, component, module, settings in rows]


def _pairs(rows: pa.Table, one: str, other: str) -> Pairs | None:
    """Returns the square of values; a comparison made only one way round is mirrored, since CKA has no direction."""
    places = sorted(set(rows[one].to_pylist()) | set(rows[other].to_pylist()))
    met = {(a, b) for a, b in zip(rows[one].to_pylist(), rows[other].to_pylist(), strict=True) if a != b}
    if len(met) < max(2, len(places)):  # each against itself, or all against one: curves, not a square
        return None
    index = {place: at for at, place in enumerate(places)}
    values = np.full((len(places), len(places)), np.nan)
    for left, right, value in zip(*(rows[name].to_pylist() for name in (one, other, "value")), strict=True):
        values[index[left], index[right]] = math.nan if value is None else value
    return Pairs(places, np.where(np.isnan(values), values.T, values))


@dataclass(frozen=True)
class Spectra:
    """Singular values of one weight at several steps, beside the Marchenko-Pastur edges.

    A matrix of independent entries of standard deviation sigma, (m, n), has its singular values between
    sigma (sqrt(max) - sqrt(min)) and sigma (sqrt(max) + sqrt(min)) (Marchenko & Pastur 1967). Over sigma sqrt(max) that
    is 1 - sqrt(q) to 1 + sqrt(q), q = min / max, at every step: what rises above the upper edge was learned.
    """

    module: str
    layer: int
    shape: tuple[int, int]
    steps: list[int]
    values: np.ndarray
    """(steps, min(shape)): descending, over sigma sqrt(max(shape)), sigma the root mean square entry of that step."""

    @property
    def edges(self) -> tuple[float, float]:
        """The Marchenko-Pastur edges, on the scale of `values`."""
        root = float(np.sqrt(min(self.shape) / max(self.shape)))
        return 1 - root, 1 + root


def read_spectra(checkpoints: list[Path], modules: list[str]) -> Spectra | None:
    """Reads the spectra of one weight of the middle layer: the last of `modules` that the last checkpoint has.

    Reads that one tensor of each file, memory-mapped. checkpoints: folders, by step. Returns None where no weight fits,
    or where one is zero or not finite.
    """
    files_of = {int(folder.name.removeprefix("step_")): folder / "model.safetensors" for folder in checkpoints}
    chosen = spread_steps(list(files_of), SPECTRA_STEPS)
    files = [files_of[step] for step in chosen]
    with safe_open(files[-1], framework="numpy") as file:
        names = list(file.keys())
    layers = sorted({int(name.split(".")[1]) for name in names if name.startswith("layers.")})
    layer = layers[len(layers) // 2] if layers else 0
    module = next((module for module in reversed(modules) if f"layers.{layer}.{module}.weight" in names), None)
    if module is None:
        return None
    weights = []
    for path in files:
        with safe_open(path, framework="numpy") as file:
            weights.append(file.get_tensor(f"layers.{layer}.{module}.weight").astype(np.float64))
    if not all(np.isfinite(weight).all() and weight.any() for weight in weights):
        return None
    return Spectra(module, layer, weights[0].shape, chosen, np.array([scaled_spectrum(weight) for weight in weights]))


def scaled_spectrum(weight: np.ndarray) -> np.ndarray:
    """Returns the singular values of a matrix, descending, over sigma sqrt(max(shape)); see `Spectra`."""
    return singular_values(weight) / (np.sqrt(np.mean(weight**2)) * np.sqrt(max(weight.shape)))


def spread_steps(steps: list[int], count: int) -> list[int]:
    """Returns at most `count` of the steps: first, last, and others evenly spread over log-step."""
    if len(steps) <= count:
        return steps
    places = np.geomspace(1, steps[-1] + 1, count) - 1
    return sorted({steps[int(np.abs(np.log1p(steps) - np.log1p(place)).argmin())] for place in places})
