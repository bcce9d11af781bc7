"""Everything that is measured of one layer of one checkpoint: a pure function of files, for any worker."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from pico.analysis.engine.choices import Place, Target
from pico.analysis.engine.components import Key
from pico.analysis.engine.plugins import load_metric_files
from pico.analysis.engine.sidecar import Layer, metric_fingerprint
from pico.analysis.engine.table import Row, make_row
from pico.analysis.metrics import catalogue
from pico.analysis.metrics.algebra import on_device
from pico.analysis.metrics.matrix import Matrix, Trajectory, distance
from pico.analysis.metrics.registry import Measurement, Metric, compute, get_metric
from pico.errors import PicoError
from pico.files import canonical_json, fingerprint, sha256_file
from pico.plugins import UserFile

_REGISTERED = (catalogue,)  # importing it registers the metrics


@dataclass(frozen=True)
class Task:
    """The measurement of one layer of one checkpoint. Plain values, so that it can be sent to any worker."""

    run: str
    """The model's name, as the table has it."""
    place: Place
    layer: int
    metrics: tuple[str, ...]
    components: tuple[str, ...]
    earlier: tuple[Place, ...]
    """The checkpoints before this one, oldest first."""
    targets: tuple[Target, ...]
    """Checkpoints that metrics with target `last` compare with."""
    files: tuple[UserFile, ...] = ()
    """The user's own metrics and components."""
    data_types: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Metrics that are measured of these types of data only; of the others of all that they are defined for."""
    device: str = "cpu"
    """The device of dense operations: "cpu" or "cuda"."""


def measure_layer(task: Task) -> list[Row]:
    """Returns all rows of one layer of one checkpoint. Raises PicoError for unreadable or missing states.

    What is kept of this layer and of those compared with is used, and what is new is kept; rows are the same, to the
    bit, with or without.
    """
    load_metric_files(task.files)
    with on_device(task.device):
        return _Measuring(task).rows()


class _Measuring:
    """One task at work."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._layers: dict[tuple[Place, int], Layer] = {}
        self._fingerprints: dict[str, str] = {}
        self.own = self._layer(task.place)
        self.step = self.own.checkpoint.step
        self.data_types = dict(task.data_types)
        self.tokens = int(self.own.checkpoint.trainer["tokens"])

    def rows(self) -> list[Row]:
        metrics = [get_metric(name) for name in self.task.metrics]
        comparing = [metric for metric in metrics if metric.target == "last"]
        rows: list[Row] = []
        for key in self.own.keys:
            # One matrix at a time: its spectrum, Gram factor and sorted entries serve every metric, then go.
            matrices = _Matrices(key, self.own)
            for metric in metrics:
                if self._wanted(metric, key):
                    rows += self._of(metric, key, matrices)
            for target in self.task.targets:  # the outer loop, so that each target's factor is read once
                for metric in comparing:
                    if self._wanted(metric, key):
                        rows += self._compared(metric, key, matrices, target)
            self.own.keep_spectrum(key, matrices.x)
        for layer in self._layers.values():
            layer.sidecar.flush()
        return rows

    def _wanted(self, metric: Metric, key: Key) -> bool:
        return key.data_type in self.data_types.get(metric.name, metric.data_types)

    def _of(self, metric: Metric, key: Key, matrices: "_Matrices") -> Iterator[Row]:
        """Returns the row of one metric of one matrix, if any; those of comparisons with targets are `_compared`'s."""
        earlier = self.task.earlier
        if metric.target is None:
            yield self._row(metric, key, matrices, [], lambda: compute(metric.name, matrices.x))
        elif metric.target == "first":
            first = self._layer(earlier[0] if earlier else self.task.place)
            yield self._elementwise(metric, key, matrices, first)
        elif metric.target == "previous" and earlier:
            yield self._elementwise(metric, key, matrices, self._layer(earlier[-1]))
        elif metric.target == "update" and len(earlier) > 1:
            before, previous = self._layer(earlier[-2]), self._layer(earlier[-1])

            def cosine() -> Measurement:
                points = [matrices.of(before), matrices.of(previous), matrices.x]
                changes = [Matrix.of(b.values - a.values) for a, b in pairwise(points)]
                return compute(metric.name, changes[1], changes[0])

            yield self._row(metric, key, matrices, [before, previous], cosine, previous)
        elif metric.target == "path" and earlier:
            layers = [*map(self._layer, earlier), self.own]
            path = Trajectory(
                [partial(matrices.of, layer) for layer in layers],
                lambda index: _leg(key, layers[index], layers[index + 1], matrices),
            )

            def along() -> Measurement:
                return compute(metric.name, matrices.x, path)

            yield self._row(metric, key, matrices, layers[:-1], along, layers[0])

    def _compared(self, metric: Metric, key: Key, matrices: "_Matrices", target: Target) -> Iterator[Row]:
        """Yields the comparison of activations with the target's, by Gram factors where the metric needs no more."""
        if target.layer is not None and key.head is not None:
            return  # head 3 of one layer has nothing to do with head 3 of another
        layer = self._layer(target.place, target.layer)
        if target.run is not None and key not in layer.keys:
            return  # of another shape: it may have fewer heads
        self._check_key(key, layer)

        def measure() -> Measurement:
            x = matrices.factor(self.own) if metric.gram else matrices.x
            y = matrices.of(layer) if metric.elementwise else matrices.factor(layer)
            if y.n != x.n or (target.run is None and target.layer is None and y.p != x.p):
                raise _other_shape(key, layer, matrices.x, y)
            return compute(metric.name, x, y)

        row = self._row(metric, key, matrices, [layer], measure, layer)
        yield row | {"target_run": target.run, "target_layer": target.layer}

    def _elementwise(self, metric: Metric, key: Key, matrices: "_Matrices", layer: Layer) -> Row:
        """Returns the row that compares weights with those of another checkpoint."""
        self._check_key(key, layer)
        settings = {"steps": self.step - layer.checkpoint.step} if "steps" in metric.parameters else {}

        def measure() -> Measurement:
            y = matrices.of(layer)
            if (y.n, y.p) != (matrices.x.n, matrices.x.p):
                raise _other_shape(key, layer, matrices.x, y)
            return compute(metric.name, matrices.x, y, **settings)

        return self._row(metric, key, matrices, [layer], measure, layer, settings)

    def _row(
        self,
        metric: Metric,
        key: Key,
        matrices: "_Matrices",
        operands: list[Layer],
        measure: Callable[[], Measurement],
        target: Layer | None = None,
        settings: dict[str, Any] | None = None,
    ) -> Row:
        parameters = metric.parameters | (settings or {})
        if metric.name not in self._fingerprints:
            self._fingerprints[metric.name] = f"{metric_fingerprint(metric)} {sha256_file(Path(__file__))}"
        code = self._fingerprints[metric.name]
        identity = [code, parameters, list(key), [layer.identity for layer in operands]]
        found = self.own.sidecar.measured(fingerprint(identity), measure)
        module = {} if key.module is None else {"module": key.module}
        return make_row(
            found,
            run=self.task.run,
            step=self.step,
            tokens=self.tokens,
            metric=metric.name,
            params=canonical_json({**module, **parameters}),
            target_step=None if target is None else target.checkpoint.step,
            component=key.component,
            data_type=key.data_type,
            layer=self.task.layer,
            head=key.head,
            split=key.split,
            input_dtype=matrices.x.dtype,
        )

    def _layer(self, place: Place, layer: int | None = None) -> Layer:
        number = self.task.layer if layer is None else layer
        if (place, number) not in self._layers:
            self._layers[place, number] = Layer(place.folder, number, self.task.components, place.sidecars)
        return self._layers[place, number]

    def _check_key(self, key: Key, layer: Layer) -> None:
        if key not in layer.keys:
            raise PicoError(
                f"{_where(layer)} has no {key.data_type} of {key.module or key.component}; others of the run have",
                mend="the checkpoints of a run must hold the same captured layers: train the model again",
            )


class _Matrices:
    """The matrices of one key, in this layer and in those it is compared with; each made once for all metrics."""

    def __init__(self, key: Key, own: Layer) -> None:
        self._key, self._own = key, own
        self.x = own.matrix(key)
        self._made: dict[str, Matrix] = {own.identity: self.x}
        self._factors: dict[str, Matrix] = {}

    def of(self, layer: Layer) -> Matrix:
        """Returns the matrix itself.

        Only the latest of other layers is held, and the one before: metrics ask in turn.
        """
        if layer.identity not in self._made:
            while len(self._made) > 2:
                del self._made[next(name for name in self._made if name != self._own.identity)]
            self._made[layer.identity] = layer.matrix(self._key)
        return self._made[layer.identity]

    def factor(self, layer: Layer) -> Matrix:
        """Its Gram factor; n x min(n, p), so those of all targets may be held."""
        if layer.identity not in self._factors:
            while len(self._factors) > 2:
                del self._factors[next(name for name in self._factors if name != self._own.identity)]
            self._factors[layer.identity] = layer.factor(self._key, self._made.get(layer.identity))
        return self._factors[layer.identity]


def _leg(key: Key, before: Layer, after: Layer, matrices: _Matrices) -> float:
    """Returns the distance between two successive checkpoints, kept with the later one."""
    name = f"from {before.identity}: {canonical_json(list(key))}"
    kept = after.sidecar.get("index", name)
    if kept is None:
        kept = repr(distance(matrices.of(after), matrices.of(before)))  # as text: JSON has no infinity
        after.sidecar.put("index", name, kept)
    return float(kept)


def _other_shape(key: Key, layer: Layer, x: Matrix, y: Matrix) -> PicoError:
    return PicoError(
        f"{_where(layer)} has {key.data_type} of shape {(y.n, y.p)} where {(x.n, x.p)} is expected",
        mend="what is compared must be of one model and one captured batch: train the model again",
    )


def _where(layer: Layer) -> str:
    return f"{layer.checkpoint.folder}, layer {layer.layer}"
