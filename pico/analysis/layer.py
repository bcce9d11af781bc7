"""Everything that is measured of one layer of one checkpoint: a pure function of files, for any worker."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pico.analysis.components import Key, Part, State, get_component, read_state
from pico.analysis.matrix import Matrix
from pico.analysis.registry import Metric, compute, get_metric
from pico.checkpoint import Checkpoint
from pico.errors import PicoError
from pico.files import canonical_json

Row = dict[str, Any]
"""One value with everything that says what it is of: the columns of pico.analysis.table."""


@dataclass(frozen=True)
class Task:
    """What one call measures. Plain values, so that it travels to any worker."""

    run: str
    """The model's name, as the table has it."""
    folder: Path
    """The checkpoint."""
    targets: dict[str, Path]
    """TARGETS name -> the checkpoint that metrics with that target compare with; absent where there is none."""
    layer: int
    metrics: tuple[str, ...]
    components: tuple[str, ...]


class _Layer:
    """A layer of one checkpoint, whose matrices are found by key. Read when first asked for."""

    def __init__(
        self, folder: Path, layer: int, components: Sequence[str], modules: tuple[str, ...] | None = None
    ) -> None:
        self.checkpoint = Checkpoint(folder)
        self._layer, self._components, self._modules = layer, components, modules

    @cached_property
    def state(self) -> State:
        return read_state(self.checkpoint, self._layer, self._modules)

    @cached_property
    def parts(self) -> dict[Key, Any]:
        found: list[Part] = [part for name in self._components for part in get_component(name)(self.state)]
        return dict(found)


def measure_layer(task: Task) -> list[Row]:
    """All rows of one layer of one checkpoint. Raises PicoError for unreadable or missing states."""
    own = _Layer(task.folder, task.layer, task.components)
    others = {
        name: own
        if folder == task.folder
        # Only "last" is compared with by activations; of the others the weights will do.
        else _Layer(folder, task.layer, task.components, None if name == "last" else own.state.modules)
        for name, folder in task.targets.items()
    }
    metrics = [get_metric(name) for name in task.metrics]
    tokens = int(own.checkpoint.trainer["tokens"])
    rows = []
    for key, make in own.parts.items():
        x = make()  # one matrix at a time: its spectrum, Gram matrix and sorted entries serve every metric, then go
        compared: dict[Path, Matrix] = {task.folder: x}
        for metric in metrics:
            if key.data_type not in metric.data_types or (metric.target is not None and metric.target not in others):
                continue
            y = _target(metric, key, x, others, compared)
            found = compute(metric.name, x, y)
            module = {} if key.module is None else {"module": key.module}
            rows.append({
                "run": task.run,
                "step": own.checkpoint.step,
                "tokens": tokens,
                "metric": metric.name,
                "params": canonical_json({**module, **metric.parameters}),
                "target_step": None if metric.target is None else others[metric.target].checkpoint.step,
                "component": key.component,
                "data_type": key.data_type,
                "layer": task.layer,
                "head": key.head,
                "split": key.split,
                "value": found.value,
                "status": found.status,
                "n": found.n,
                "p": found.p,
                "rank": found.rank,
                "input_dtype": x.dtype,
            })  # fmt: skip
    return rows


def _target(
    metric: Metric, key: Key, x: Matrix, others: dict[str, _Layer], compared: dict[Path, Matrix]
) -> Matrix | None:
    """The same matrix in the checkpoint that the metric compares with; made once for all metrics that do."""
    if metric.target is None:
        return None
    other = others[metric.target]
    folder = other.checkpoint.folder
    if folder not in compared:
        if key not in other.parts:
            raise PicoError(
                f"{other.state.where} has no {key.data_type} of {key.module or key.component}; others of the run have",
                mend="the checkpoints of a run must hold the same captured layers: train the model again",
            )
        compared[folder] = other.parts[key]()
    y = compared[folder]
    if (y.n, y.p) != (x.n, x.p):
        raise PicoError(
            f"{other.state.where} has {key.data_type} of shape {(y.n, y.p)} where {(x.n, x.p)} is expected",
            mend="the checkpoints of a run must be of one model and one captured batch: train the model again",
        )
    return y
