"""The user's own metrics and components, from the files of setting `analysis.files`; see pico.plugins."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from pico.analysis.engine.components import COMPONENTS, Component, Part, State
from pico.analysis.metrics.registry import BEHAVIOUR, METRICS, STATUSES, Metric, Undefined
from pico.plugins import Registry, UserFile, line_of, load_user_files, named, read_user_file, read_user_files

PAGE = "docs/custom-metrics.md"


read_metric_files = functools.partial(read_user_files, setting="analysis.files", page=PAGE)
"""Reads the files of setting `analysis.files`; see `pico.plugins.read_user_files`."""
read_metric_file = functools.partial(read_user_file, page=PAGE)


def load_metric_files(files: Sequence[UserFile]) -> tuple[tuple[str, ...], ...]:
    """Imports the files; returns the names of the metrics and of the components that they register.

    See `pico.plugins.load_user_files`. Errors that a metric or component raises later, while it measures, are
    PicoErrors that name file and line, too.
    """
    return load_user_files(files, _METRICS, _COMPONENTS)


def _guarded_metric(metric: Metric, file: UserFile) -> Metric:
    function, line = metric.function, line_of(metric)

    @functools.wraps(function)
    def of_states(*operands: Any, **parameters: Any) -> Any:
        with named(file, line, passing=(Undefined,)):
            result = function(*operands, **parameters)
            value, status = result if isinstance(result, tuple) else (result, "ok")
            if not isinstance(value, Real) or status not in STATUSES:
                raise TypeError(
                    f"metric {metric.name!r} gave {result!r}, not a float or (float, one of {', '.join(STATUSES)})"
                )
            return result

    @functools.wraps(function)
    def of_behaviour(subject: Any) -> Iterator[Any]:
        with named(file, line):
            yield from function(subject)

    return replace(metric, function=of_behaviour if metric.kind == BEHAVIOUR else of_states)


def _guarded_component(component: Component, file: UserFile) -> Component:
    def guarded_make(make: Callable[[], Any]) -> Callable[[], Any]:
        def guarded() -> Any:
            with named(file):
                return make()

        return guarded

    @functools.wraps(component.function)
    def guarded(state: State) -> Iterator[Part]:
        with named(file):
            for key, make in component.function(state):
                yield key, guarded_make(make)

    return replace(component, function=guarded)


_METRICS = Registry("metric", METRICS, _guarded_metric)
_COMPONENTS = Registry("component", COMPONENTS, _guarded_component)
