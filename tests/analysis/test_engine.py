"""The table of a run: what is in it, and that neither workers nor interruptions change a byte of it."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from synthetic_runs import LAYERS, write_run

from pico.analysis.engine.run import analysis_folder, analyze_run
from pico.analysis.engine.table import IDENTITY, SCHEMA, read_table, write_table
from pico.analysis.metrics.catalogue import STATES, compute, metrics_of
from pico.errors import PicoError
from pico.files import read_json, write_json

STEPS = (0, 1, 2, 4)
COMPONENTS = ["simple", "ov_circuit"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_run(folder, steps=STEPS)
    return folder


@pytest.fixture(scope="module")
def analysed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analysis")
    analyze_run(run, "tiny", list(metrics_of(STATES)), COMPONENTS, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_table_has_every_value_once(analysed: Path) -> None:
    table = read_table(analysed)
    assert table.schema.equals(SCHEMA)
    rows = table.to_pylist()
    keys = {tuple(row[name] for name in IDENTITY) for row in rows}
    assert len(keys) == len(rows)
    heads = 4
    of_states = {"weights", "activations", "gradients"}  # those of training are in test_gradient_noise.py
    for name, metric in metrics_of(STATES).items():
        if not of_states & set(metric.data_types):
            continue
        # modules, and heads with the joined one; captured tensors exist for two splits
        per_layer = sum((1 if kind == "weights" else 2) * (len(LAYERS) + heads + 1) for kind in metric.data_types)
        steps = len(STEPS) - {"previous": 1, "path": 1, "update": 2}.get(metric.target, 0)
        assert sum(row["metric"] == name for row in rows) == 2 * steps * per_layer
    assert all((row["value"] is None) == (row["status"] not in ("ok", "rank_deficient")) for row in rows)
    assert {row["tokens"] for row in rows if row["step"] == 4} == {512}
    assert {row["split"] for row in rows if row["data_type"] == "weights"} == {None}
    assert {row["input_dtype"] for row in rows} == {"float32"}


def test_values_are_those_of_compute(run: Path, analysed: Path) -> None:
    from pico.checkpoint import checkpoints

    found = checkpoints(run)
    rows = [row for row in read_table(analysed).to_pylist() if row["step"] == 1 and row["layer"] == 1]

    def value(metric: str, **wanted: object) -> tuple:
        wanted = {"metric": metric, "component": "simple", "params": '{"module":"attention.o_proj"}'} | wanted
        matching = [row for row in rows if all(row[name] == wanted[name] for name in wanted)]
        assert len(matching) == 1
        return matching[0]["value"], matching[0]["target_step"]

    name = "layers.1.attention.o_proj"
    activations = [one.dynamics("val", "activations")[name] for one in found]
    weights = [one.model()[f"{name}.weight"] for one in found]
    gradient = found[1].dynamics("train", "gradients")[f"{name}.weight"]
    last = compute("debiased_cka", activations[1], activations[3]).value
    assert value("debiased_cka", split="val") == (last, 4)
    assert value("relative_change") == (compute("relative_change", weights[1], weights[0]).value, 0)
    assert value("distance_from_initialization") == (
        compute("distance_from_initialization", weights[1], weights[0]).value,
        0,
    )
    assert value("per", data_type="gradients", split="train") == (compute("per", gradient).value, None)


def test_the_last_checkpoint_equals_itself(analysed: Path) -> None:
    rows = [row for row in read_table(analysed).to_pylist() if row["step"] == 4 and row["metric"] == "linear_cka"]
    assert rows
    assert np.allclose([row["value"] for row in rows], 1)


def test_an_interrupted_analysis_resumes_to_the_same_bytes(run: Path, analysed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(analysed, folder)
    (folder / "step_00000002.parquet").unlink()
    (folder / ".step_00000002.parquet.partial").write_bytes(b"half")
    kept = (folder / "step_00000001.parquet").stat().st_mtime_ns
    told = []
    analyze_run(
        run, "tiny", list(metrics_of(STATES)), COMPONENTS, folder, report=lambda done, total: told.append((done, total))
    )
    assert contents(folder) == contents(analysed)
    assert (folder / "step_00000001.parquet").stat().st_mtime_ns == kept
    assert told == [(1, 3), (2, 3), (3, 3)]  # two layers, and training as a whole


@pytest.mark.slow
def test_ray_workers_give_the_same_bytes(run: Path, analysed: Path, tmp_path: Path) -> None:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    try:
        for workers in (1, 2):
            folder = tmp_path / str(workers)
            folder.mkdir()
            analyze_run(run, "tiny", list(metrics_of(STATES)), COMPONENTS, folder, workers=workers)
            assert contents(folder) == contents(analysed)
    finally:
        ray.shutdown()


def test_the_working_folder_follows_what_the_numbers_depend_on(run: Path, tmp_path: Path) -> None:
    first = analysis_folder(run, "tiny", ["per"], ["simple"], tmp_path)
    assert first == analysis_folder(run, "tiny", ["per"], ["simple"], tmp_path)
    assert first != analysis_folder(run, "tiny", ["per", "gini"], ["simple"], tmp_path)
    other = tmp_path / "other"
    shutil.copytree(run, other)
    manifest = other / "checkpoints" / "step_00000001" / "manifest.json"
    write_json(manifest, read_json(manifest) | {"altered": True})
    assert first != analysis_folder(other, "tiny", ["per"], ["simple"], tmp_path)


def test_one_checkpoint_of_one_layer(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "work"
    write_run(run, steps=(7,), n_layers=1, n_heads=1, n_kv_heads=1)
    folder.mkdir()
    analyze_run(run, "one", ["linear_cka", "relative_change", "per"], COMPONENTS, folder)
    rows = read_table(folder).to_pylist()
    assert {row["metric"] for row in rows} == {"linear_cka", "per"}  # there is nothing before to have changed from
    assert {row["layer"] for row in rows} == {0}


def test_bad_runs_and_names_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(PicoError, match="did you mean 'per'"):
        analyze_run(run, "tiny", ["perr"], COMPONENTS, tmp_path)
    with pytest.raises(PicoError, match="did you mean 'ov_circuit'"):
        analyze_run(run, "tiny", ["per"], ["ov_circuits"], tmp_path)
    with pytest.raises(PicoError, match="no finished checkpoints"):
        analyze_run(tmp_path, "tiny", ["per"], COMPONENTS, tmp_path)
    with pytest.raises(PicoError, match="no analysed checkpoints"):
        read_table(tmp_path)
    torn = tmp_path / "torn"
    shutil.copytree(run, torn)
    weights = torn / "checkpoints" / "step_00000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(PicoError, match=r"step_00000002.model\.safetensors cannot be read"):
        analyze_run(torn, "tiny", ["per"], COMPONENTS, work)
    assert sorted(path.name for path in work.iterdir()) == ["step_00000000.parquet", "step_00000001.parquet"]
    (work / "step_00000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(PicoError, match=r"step_00000000\.parquet cannot be read"):
        read_table(work)


def test_equal_keys_are_refused(analysed: Path, tmp_path: Path) -> None:
    rows = pq.read_table(analysed / "step_00000000.parquet").to_pylist()[:3]
    with pytest.raises(ValueError, match="two measurements have one key"):
        write_table(tmp_path / "t.parquet", [*rows, rows[1]])
    write_table(tmp_path / "a.parquet", rows)
    write_table(tmp_path / "b.parquet", rows[::-1])
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_metric_is_measured_of_the_chosen_types_of_data_only(run: Path, tmp_path: Path) -> None:
    analyze_run(run, "one", ["gini", "per"], ["simple"], tmp_path, data_types={"gini": ["weights"]})
    found = {(row["metric"], row["data_type"]) for row in read_table(tmp_path).to_pylist()}
    assert found == {("gini", "weights"), ("per", "weights"), ("per", "activations"), ("per", "gradients")}
    with pytest.raises(PicoError, match="'hoyer', which is not measured"):
        analyze_run(run, "one", ["gini"], ["simple"], tmp_path, data_types={"hoyer": ["weights"]})
    with pytest.raises(PicoError, match="'linear_cka' is not defined for weights"):
        analyze_run(run, "one", ["linear_cka"], ["simple"], tmp_path, data_types={"linear_cka": ["weights"]})
