"""The user's own metrics and components, from the files of setting `analysis.files`; see pico.plugins."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from pico.analysis.engine.components import COMPONENTS, OF_THE_MODEL, Component, Part, State
from pico.analysis.metrics.registry import METRICS, STATUSES, Metric, Undefined
from pico.plugins import Registry, UserFile, line_of, load_user_files, named, read_user_file, read_user_files

PAGE = "docs/custom-metrics.md"


class Registered(NamedTuple):
    """The names that files added."""

    metrics: tuple[str, ...]
    components: tuple[str, ...]


def read_metric_files(paths: Sequence[str], root: Path = Path()) -> tuple[UserFile, ...]:
    """Reads the files of setting `analysis.files`; see `pico.plugins.read_user_files`."""
    return read_user_files(paths, root, setting="analysis.files", page=PAGE)


def read_metric_file(path: Path) -> UserFile:
    """Reads one file; see `pico.plugins.read_user_file`."""
    return read_user_file(path, page=PAGE)


def load_metric_files(files: Sequence[UserFile]) -> Registered:
    """Imports the files, which registers their metrics and components; see `pico.plugins.load_user_files`.

    Errors that a metric or component raises later, while it measures, are PicoErrors that name file and line, too.
    """
    try:
        return Registered(*load_user_files(files, _METRICS, _COMPONENTS))
    finally:
        OF_THE_MODEL.intersection_update(COMPONENTS)


def _guarded_metric(metric: Metric, file: UserFile) -> Metric:
    function, line = metric.function, line_of(metric)

    @functools.wraps(function)
    def guarded(*operands: Any, **parameters: Any) -> Any:
        with named(file, line, passing=(Undefined,)):
            result = function(*operands, **parameters)
            value, status = result if isinstance(result, tuple) else (result, "ok")
            if not isinstance(value, Real) or status not in STATUSES:
                raise TypeError(
                    f"metric {metric.name!r} gave {result!r}, not a float or (float, one of {', '.join(STATUSES)})"
                )
            return result

    return replace(metric, function=guarded)


def _guarded_component(function: Component, file: UserFile) -> Component:
    def guarded_make(make: Callable[[], Any]) -> Callable[[], Any]:
        def guarded() -> Any:
            with named(file):
                return make()

        return guarded

    @functools.wraps(function)
    def guarded(state: State) -> Iterator[Part]:
        with named(file):
            for key, make in function(state):
                yield key, guarded_make(make)

    return guarded


_METRICS = Registry("metric", METRICS, _guarded_metric)
_COMPONENTS = Registry("component", COMPONENTS, _guarded_component)
