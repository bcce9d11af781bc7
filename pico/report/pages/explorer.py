"""reports/explorer.html: every series of the analysis tables in one file that works offline.

The data are columns: a series is one index into each list of names, and the values of all series of a model are one
array of float32 (little-endian, base64), series by step, NaN where there is none; why there is none is kept beside it.
float32 carries seven digits, and more than any picture shows; values beyond its range are left out with the status
`beyond float32`.
"""

import base64
import json
from typing import Any

import numpy as np
import pyarrow as pa

from pico.analysis.metrics.catalogue import STATES, metrics_of
from pico.report.inputs.dynamics import independent_columns, null_level
from pico.report.inputs.suite import Model, Suite
from pico.report.pages.rendering import render_page, template_text

KEY = ("metric", "settings", "component", "module", "data_type", "split", "layer", "head")
"""The columns that tell two series of a model apart."""
BEYOND = "beyond float32"


def render_explorer(suite: Suite) -> str:
    """Returns the page as HTML."""
    return render_page(
        "explorer.html.j2", suite, data=embedded(explorer_data(suite)), script=template_text("explorer.js")
    )


def explorer_data(suite: Suite) -> dict[str, Any]:
    """Returns the data that the page embeds: names by column, definitions of metrics, and the series of each model."""
    names: dict[str, dict[Any, int]] = {column: {} for column in KEY}
    models, known = [_columns(model, names) for model in suite.models], metrics_of(STATES)
    return {
        "names": {column: list(found) for column, found in names.items()},
        "definitions": {name: known[name].definition for name in names["metric"] if name in known},
        "models": models,
    }


def embedded(data: dict[str, Any]) -> str:
    """Returns JSON that can stand inside a script element: no `<`, `>` or `&`, whatever a name holds."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _columns(model: Model, names: dict[str, dict[Any, int]]) -> dict[str, Any]:
    """Returns the series of one model; adds to `names` those that are new."""
    table = model.dynamics.table
    codes = np.stack([_codes(table[column], names[column]) for column in KEY])
    series, place = np.unique(codes, axis=1, return_inverse=True)
    steps, at = np.unique(table["step"].to_numpy(), return_inverse=True)
    values = np.full((series.shape[1], len(steps)), np.nan)
    values[place, at] = np.array(table["value"].to_numpy(), float)
    with np.errstate(over="ignore"):
        narrow = values.astype("<f4")
    beyond = np.isfinite(values) & ~np.isfinite(narrow)
    narrow[beyond] = np.nan
    missing = [
        [int(one), int(other), status]
        for one, other, status in zip(place, at, table["status"].to_pylist(), strict=True)
        if status != "ok"
    ]
    missing += [[int(one), int(other), BEYOND] for one, other in np.argwhere(beyond)]
    return {
        "name": model.name,
        "steps": steps.tolist(),
        "series": {column: series[index].tolist() for index, column in enumerate(KEY)},
        "values": base64.b64encode(narrow.tobytes()).decode(),
        "status": sorted(missing),
        "nulls": _nulls(table, place),
    }


def _codes(column: pa.ChunkedArray, names: dict[Any, int]) -> np.ndarray:
    """Returns the index of every row's value among `names`, which grows by new ones, sorted; null is a name too."""
    found = column.unique().to_pylist()
    for value in sorted(found, key=lambda value: (value is not None, value if value is not None else 0)):
        names.setdefault(value, len(names))
    encoded = column.dictionary_encode(null_encoding="encode").combine_chunks()
    return np.array([names[value] for value in encoded.dictionary.to_pylist()])[encoded.indices.to_numpy()]


def _nulls(table: pa.Table, place: np.ndarray) -> list[list[float]]:
    """Returns [series, level] for the series whose metric has an independence null."""
    _, firsts = np.unique(place, return_index=True)
    rows = table.select(["metric", "n", "p", "rank"]).take(pa.array(firsts)).to_pylist()
    levels = [null_level(row["metric"], row["n"], independent_columns(row["n"], row["p"], row["rank"])) for row in rows]
    return [[index, round(level, 6)] for index, level in enumerate(levels) if level is not None]
