"""What `pico metrics` lists."""

import inspect

from pico.analysis.listing import list_metrics
from pico.analysis.metrics.catalogue import METRICS
from pico.behaviour import measure  # noqa: F401 (its metrics are listed, too)
from pico.files import canonical_json


def test_every_metric_is_listed_with_what_a_reader_needs() -> None:
    rows = {row["name"]: row for row in list_metrics()}
    assert set(rows) == set(METRICS)
    assert list(rows) == sorted(rows)
    for name, row in rows.items():
        assert row["definition"]
        assert row["applies_to"]
        assert row["inputs"]
        assert row["source"]
        assert METRICS[name].function.__doc__
        defaults = inspect.signature(METRICS[name].function).parameters
        assert row["settings"] == {setting: defaults[setting].default for setting in row["settings"]}
    canonical_json(list_metrics())  # plain values


def test_inputs_say_what_is_refused() -> None:
    inputs = {row["name"]: row["inputs"] for row in list_metrics()}
    assert inputs["debiased_cka"] == "two matrices with the same samples as rows, of at least 4 rows"
    assert inputs["relative_change"] == "two matrices with equal shapes"
    assert inputs["nll"] == "a model and rows of tokens"
    assert inputs["per"] == "one matrix of any shape"
