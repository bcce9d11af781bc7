"""Time to stability: known crossings, what counts as stable, and what is never claimed."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pico.analysis.engine.table import SCHEMA
from pico.report.inputs.convergence import concordance, similarity_at, stability, summarise, time_to_stability
from pico.report.inputs.dynamics import COLUMNS, Dynamics, read_dynamics

STEPS = [0, 1, 3, 7, 15]
SIMILARITY = st.lists(st.floats(-1, 1), min_size=5, max_size=5)


def test_interpolates_linearly_in_log_step() -> None:
    # from 0.8 at step 3 to 1.0 at step 7: 0.9 halfway between ln 4 and ln 8
    assert time_to_stability(STEPS, [0.1, 0.5, 0.8, 1.0, 1.0]) == pytest.approx(math.sqrt(4 * 8) - 1)
    assert time_to_stability(STEPS, [0.1, 0.5, 0.8, 0.9, 1.0]) == pytest.approx(7)


def test_stays_means_until_the_end() -> None:
    assert time_to_stability(STEPS, [0.95, 0.95, 0.2, 0.9, 1.0]) == pytest.approx(7)
    assert time_to_stability(STEPS, [0.95, 0.95, 0.95, 0.89, 1.0]) is None


def test_the_last_checkpoint_compared_with_itself_is_no_evidence() -> None:
    assert time_to_stability(STEPS, [0.0, 0.0, 0.0, 0.0, 1.0]) is None
    assert time_to_stability([0], [1.0]) is None


def test_stable_from_the_start_and_unknown_values() -> None:
    assert time_to_stability(STEPS, [0.95] * 4 + [1.0]) == 0
    assert time_to_stability(STEPS, [0.95, None, 0.95, 0.95, 1.0]) == 3  # nothing to interpolate from
    assert time_to_stability(STEPS, [0.95, 0.95, 0.95, math.nan, 1.0]) is None


@pytest.mark.parametrize("steps", [[0, 1, 1], [3, 2, 1], [0, 1]])
def test_refuses_steps_that_do_not_ascend_or_fit(steps: list[int]) -> None:
    with pytest.raises(ValueError, match="steps"):
        time_to_stability(steps, [0.1, 0.2, 0.3])


@given(SIMILARITY, st.floats(-0.9, 0.9), st.floats(0, 0.5))
def test_a_higher_level_is_never_reached_sooner(values: list[float], level: float, more: float) -> None:
    low, high = time_to_stability(STEPS, values, level), time_to_stability(STEPS, values, level + more)
    assert high is None or (low is not None and low <= high + 1e-9)


@given(SIMILARITY, st.floats(-0.9, 0.9))
def test_from_there_on_every_checkpoint_is_at_or_above(values: list[float], level: float) -> None:
    time = time_to_stability(STEPS, values, level)
    if time is None:
        assert values[-2] < level
    else:
        assert 0 <= time <= STEPS[-2]
        later = [value for step, value in zip(STEPS[:-1], values, strict=False) if step >= time + 1e-9]
        assert all(value >= level for value in later)


def test_similarity_between_checkpoints() -> None:
    assert similarity_at(STEPS, [0.0, 0.2, 0.4, 0.8, 1.0], 7) == pytest.approx(0.8)
    assert similarity_at(STEPS, [0.0, 0.2, 0.4, 0.8, 1.0], math.sqrt(32) - 1) == pytest.approx(0.6)
    assert similarity_at(STEPS, [0.0, 0.2, None, 0.8, 1.0], 5) is None
    assert similarity_at(STEPS, [0.0] * 5, 16) is None


def read(folder: Path, curves: dict[tuple[str, int], list[float | None]], **changes: object) -> Dynamics:
    """Adds debiased CKA to the last step, for (module, layer) -> values over STEPS, to an analysis, and reads it."""
    rows = [
        {"run": "a", "step": step, "metric": "debiased_cka", "params": json.dumps({"module": module}),
         "target_step": STEPS[-1], "component": "simple", "data_type": "activations", "layer": layer, "split": "val",
         "value": value, "status": "ok", "n": 64, "p": 32} | changes
        for (module, layer), values in curves.items()
        for step, value in zip(STEPS, values, strict=True)
    ]  # fmt: skip
    path = folder / "step_00000000.parquet"  # one file holds all steps: a reader looks at the column alone
    before = pq.read_table(path).to_pylist() if path.exists() else []
    table = pa.Table.from_pylist(
        [*before, *rows], pa.schema([SCHEMA.field(name).with_nullable(True) for name in COLUMNS])
    )
    pq.write_table(table, path)
    return read_dynamics(folder)


FAST, SLOW, NEVER = [0.8, 1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.8, 1.0, 1.0], [0.0, 0.1, 0.2, 0.3, 1.0]


def test_every_layer_and_module_has_its_time(tmp_path: Path) -> None:
    found = stability(read(tmp_path, {("w", 1): FAST, ("w", 0): FAST, ("o", 0): SLOW, ("o", 1): NEVER}), "a")
    assert [(one.module, one.layer) for one in found] == [("o", 0), ("o", 1), ("w", 0), ("w", 1)]
    assert [one.step for one in found] == pytest.approx([math.sqrt(32) - 1, None, math.sqrt(2) - 1, math.sqrt(2) - 1])
    assert found[2].fraction == pytest.approx((math.sqrt(2) - 1) / 15)
    assert {one.run for one in found} == {"a"}


@pytest.mark.parametrize(
    "changes",
    [
        {"target_step": 3}, {"target_layer": 3}, {"target_run": "b"}, {"metric": "linear_cka"}, {"split": "train"},
        {"data_type": "weights"},
    ],
    ids=str,
)  # fmt: skip
def test_comparisons_with_other_steps_layers_and_runs_are_left_alone(tmp_path: Path, changes: dict) -> None:
    own = stability(read(tmp_path, {("m", 0): SLOW}), "a")
    assert [one.step for one in own] == pytest.approx([math.sqrt(32) - 1])
    assert stability(read(tmp_path, {("m", 0): FAST}, **changes), "a") == own


def test_no_comparison_no_time(tmp_path: Path) -> None:
    assert stability(read(tmp_path, {("m", 0): SLOW}, metric="linear_cka"), "a") == []


def test_summary_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    found = stability(read(tmp_path, {("m", 0): FAST, ("m", 1): SLOW, ("m", 2): NEVER}), "a")
    found += stability(read(tmp_path / "b", {("m", 0): NEVER}), "b")
    first, second = summarise(found, ["b", "a", "none"])
    assert (first.run, first.layers, first.stable, first.median) == ("b", 1, 0, None)
    assert (second.layers, second.stable, second.stable_early) == (3, 2, 1)
    assert second.median == pytest.approx((math.sqrt(32) - 1) / 15)  # never is later than all others
    assert first.early == pytest.approx(0.2)  # step 3 is a fifth of 15


def test_concordance_is_kendalls_tau() -> None:
    assert concordance([1, 2, 3, 4]) == 1
    assert concordance([None, 3, 2, 1]) == -1
    assert concordance([2, 2, 2]) == 0
    assert concordance([1]) is None
