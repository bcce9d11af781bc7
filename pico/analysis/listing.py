"""The registry of metrics as plain rows, for `pico metrics` and for documents."""

from typing import Any

from pico.analysis.metrics.registry import BEHAVIOUR, METRICS, Metric


def list_metrics() -> list[dict[str, Any]]:
    """Returns a row a registered metric, in order of name.

    applies_to: list of types of data. inputs: the valid inputs, in words. target: what it compares with, None where it
    looks at one tensor. settings: name -> default.
    """
    return [
        {
            "name": metric.name,
            "definition": metric.definition,
            "applies_to": list(metric.data_types),
            "inputs": _inputs(metric),
            "target": metric.target,
            "settings": dict(metric.parameters),
            "source": metric.source,
        }
        for metric in sorted(METRICS.values(), key=lambda one: one.name)
    ]


def _inputs(metric: Metric) -> str:
    if metric.kind == BEHAVIOUR:
        return "a model and rows of tokens"
    rows = f"of at least {metric.min_rows} rows" if metric.min_rows > 1 else "of any shape"
    if metric.target is None:
        return f"one matrix {rows}"
    alike = "equal shapes" if metric.elementwise else "the same samples as rows"
    return f"two matrices with {alike}, {rows}" if metric.min_rows > 1 else f"two matrices with {alike}"
