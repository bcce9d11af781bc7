"""The registry of metrics: a decorator that declares one, and `compute`, which never raises on degenerate data.

Metrics of states look at the matrices of a checkpoint (see pico.analysis.engine), metrics of behaviour at a model and
rows of tokens (see pico.behaviour). Both are declared by `@metric`, here, in pico.behaviour, or in a user's file.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from pico.analysis.metrics.matrix import Matrix, Trajectory
from pico.errors import PicoError

DATA_TYPES = {
    "A": "activations",
    "W": "weights",
    "G": "gradients",
    "N": "gradient_norms",
    "L": "loss",
    "B": "behaviour",
    "C": "landscape",
}
"""Letter -> the table's `data_type`. Metrics of B and C (the curvature of the loss) are metrics of behaviour."""
STATES, BEHAVIOUR = "states", "behaviour"
SETTINGS = {STATES: "analysis.metrics", BEHAVIOUR: "behaviour.metrics"}
"""Kind of metric -> the setting that names those to be measured."""
TARGETS = ("last", "previous", "first", "update", "path", "batch", "run")
"""The second operand. `last`: the checkpoint that analysis.compare names, the last one by default; `previous`, `first`:
the one before, the first one; `update`: X is the change since the one before, Y the change before that; `path`: all
states of X up to now, a Trajectory; `batch`: the same of the whole batch, where X is of small ones; `run`: another run.
"""
STATUSES = ("ok", "zero", "rank_deficient", "n_too_small", "nonfinite")


@dataclass(frozen=True)
class Measurement:
    """The result of a metric.

    `value` is None where the metric is not defined, and `status` says why: `zero` (nothing, or nothing but a constant,
    is there), `n_too_small` (too few rows), `nonfinite` (the input, or the result, holds NaN or infinity). With `ok`
    there is always a value; `rank_deficient` goes with a value taken over the numerical rank. `n`, `p`: the shape of X;
    for behaviour, the number of samples (tokens, positions, prompts) and the width of what was looked at: the
    vocabulary, the row length of attention, the number of parameters. `rank`: of spectral metrics, the numerical rank;
    of those that compare, the largest that shape or factors allow.
    """

    value: float | None
    status: str
    n: int
    p: int
    rank: int | None = None


class Undefined(Exception):
    """Raised inside a metric where it has no value for this input; `status` is one of STATUSES."""

    def __init__(self, status: str) -> None:
        self.status = status
        super().__init__(status)


@dataclass(frozen=True)
class Metric:
    """A registered metric."""

    name: str
    definition: str
    source: str
    data_types: tuple[str, ...]
    """DATA_TYPES' values: what it is applied to."""
    target: str | None
    """None: it looks at one tensor. Else it compares two; this (of TARGETS) says which checkpoint has the second."""
    spectral: bool
    """It comes from the singular values, and reports the numerical rank."""
    min_rows: int
    elementwise: bool
    """It compares entry by entry, so both tensors need the same shape, not only the same rows."""
    parameters: dict[str, Any]
    """The settings of the metric itself and their defaults, for instance {"threshold": 0.01}."""
    function: Callable[..., Any]
    gram: bool = False
    """All that it asks of X is the inner products between centred rows, so an analysis gives it a kept factor of them.
    Of Y that holds for every metric that compares activations, unless it is elementwise."""
    default: bool = False
    """Measured where no metrics are named: by `pico analyze`, and by `BehaviourSettings()`."""

    @property
    def kind(self) -> str:
        """STATES or BEHAVIOUR."""
        return BEHAVIOUR if {DATA_TYPES["B"], DATA_TYPES["C"]} & set(self.data_types) else STATES


METRICS: dict[str, Metric] = {}
"""All metrics that are registered in this process, of either kind. See `metrics_of`."""


def metric(
    *,
    definition: str,
    source: str,
    types: str,
    target: str | None = None,
    spectral: bool = False,
    min_rows: int = 1,
    elementwise: bool = False,
    gram: bool = False,
    default: bool = False,
) -> Callable[[Callable], Callable]:
    """Registers a function under its own name; `types`: letters of DATA_TYPES, for instance "WG".

    A metric of states is a function of one Matrix (or of two, with `target`). It gives a float, or (float, status), or
    raises `Undefined(status)`. Its keyword-only arguments are the metric's settings; they need defaults that JSON can
    hold. A setting `steps` is given the number of optimiser steps since the checkpoint compared with.

    A metric of behaviour ("B", "C") is a function of a `pico.behaviour.Subject` that yields `pico.behaviour.Value`s.
    Only `definition`, `source`, `types`, `target` and `default` mean something for it.
    """

    def register(function: Callable) -> Callable:
        name = function.__name__
        if name in METRICS and inspect.getsourcefile(METRICS[name].function) != inspect.getsourcefile(function):
            raise ValueError(f"a metric named {name!r} is registered already")
        if target not in (None, *TARGETS):
            raise ValueError(f"metric {name!r}: target {target!r} is none of {TARGETS}")
        data_types = tuple(DATA_TYPES[letter] for letter in types)
        settings = inspect.signature(function).parameters.values()
        parameters = {one.name: one.default for one in settings if one.kind is inspect.Parameter.KEYWORD_ONLY}
        METRICS[name] = Metric(
            name=name,
            definition=definition,
            source=source,
            data_types=data_types,
            target=target,
            spectral=spectral,
            min_rows=min_rows,
            elementwise=elementwise,
            parameters=parameters,
            function=function,
            gram=gram,
            default=default,
        )
        return function

    return register


def metrics_of(kind: str) -> dict[str, Metric]:
    """Returns the registered metrics of states or of behaviour, by name and in order of name."""
    return {name: one for name, one in sorted(METRICS.items()) if one.kind == kind}


def default_metrics(kind: str) -> tuple[str, ...]:
    """Returns the names of the metrics that are measured where none are named."""
    return tuple(name for name, one in metrics_of(kind).items() if one.default)


def get_metric(name: str, kind: str = STATES) -> Metric:
    """Returns the metric of that name. Raises PicoError naming the nearest one, or where it is of the other kind."""
    found = METRICS.get(name)
    if found is None:
        known = metrics_of(kind)
        what = f"{name!r} is not a metric of {kind}{nearest(name, known)}"
        raise PicoError(what, mend=f"the metrics of {kind} are {', '.join(known)}")
    if found.kind != kind:
        raise PicoError(f"{name!r} is a metric of {found.kind}", mend=f"name it in {SETTINGS[found.kind]}")
    return found


def nearest(name: str, known: Collection[str]) -> str:
    """Returns `; did you mean ...?`, or nothing where no known name is close."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def require(holds: bool, metric: str, setting: str, value: Any, wanted: str) -> None:
    """Raises PicoError naming the metric, the setting and its value, unless the condition holds."""
    if not holds:
        raise PicoError(f"metric {metric!r}: {setting} = {value!r}", mend=f"{setting} must be {wanted}")


def nonzero(value: float) -> float:
    """Returns the value. Raises Undefined("zero") where it is 0."""
    if value == 0:
        raise Undefined("zero")
    return value


def require_variation(*matrices: Matrix) -> None:
    """Raises Undefined("zero") where a matrix's rows are all the same."""
    for one in matrices:
        if not one.row_energy.sum() > 0:
            raise Undefined("zero")


def compute(name: str, X: Any, Y: Any = None, **parameters: Any) -> Measurement:
    """Computes one metric.

    X, Y: numpy or torch arrays of any float type, (n samples, p features); further leading axes are samples too, and a
    vector is one column. A `Matrix` is taken as it is, so that several metrics share its spectrum and Gram matrix.
    For metrics of a path, Y is a list of earlier states of X, oldest first (or the only one).
    Raises PicoError for an unknown metric or setting, a missing or unwanted Y, or shapes that cannot be compared;
    degenerate data never raise, see `Measurement`.
    """
    chosen = get_metric(name)
    if unknown := set(parameters) - set(chosen.parameters):
        raise PicoError(f"metric {name!r} has no setting {sorted(unknown)}", mend=f"it has {sorted(chosen.parameters)}")
    if (Y is None) != (chosen.target is None):
        wanted = "needs two tensors" if Y is None else "looks at one tensor, but two were given"
        raise PicoError(f"metric {name!r} {wanted}")
    x = Matrix.of(X)
    if chosen.target == "path":
        path = Y if isinstance(Y, Trajectory) else Trajectory.of(Y, x)
        _check_comparable(chosen, x, path[0])
        return _measure(chosen, [x], parameters, path)
    operands = [x] if Y is None else [x, Matrix.of(Y)]
    if chosen.target:
        _check_comparable(chosen, *operands)
    return _measure(chosen, operands, parameters)


def _check_comparable(chosen: Metric, x: Matrix, y: Matrix) -> None:
    if x.n != y.n:
        raise PicoError(f"metric {chosen.name!r}: X has {x.n} rows but Y has {y.n}", mend="row i of both is one sample")
    if (chosen.elementwise or chosen.target == "path") and x.p != y.p:
        raise PicoError(f"metric {chosen.name!r}: X has {x.p} columns but Y has {y.p}", mend="give equal shapes")


def _measure(
    chosen: Metric, operands: list[Matrix], parameters: dict[str, Any], path: Trajectory | None = None
) -> Measurement:
    x = operands[0]

    def undefined(status: str) -> Measurement:
        return Measurement(None, status, x.n, x.p)

    if any(one.n < chosen.min_rows or one.p == 0 for one in operands):
        return undefined("n_too_small")
    if not all(one.finite for one in operands):
        return undefined("nonfinite")
    try:
        with np.errstate(all="ignore"):  # an overflow shows in the result, which is looked at below
            result = chosen.function(*operands, *([path] if path else []), **parameters)
    except Undefined as reason:
        return undefined(reason.status)
    value, status = result if isinstance(result, tuple) else (result, "ok")
    if not math.isfinite(value):
        return undefined("nonfinite")
    rank = x.rank if chosen.spectral else x.largest_rank if chosen.target else None
    return Measurement(float(value), status, x.n, x.p, rank)
