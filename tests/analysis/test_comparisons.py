"""Comparisons are with what the settings say; and what is kept beside the table changes no byte of it."""

import shutil
from pathlib import Path

import pytest
from synthetic_runs import write_run

from pico.analysis.engine.run import analysis_folder, analyze_run
from pico.analysis.engine.sidecar import gram_factor
from pico.analysis.engine.table import read_table
from pico.analysis.metrics.catalogue import compute
from pico.analysis.metrics.matrix import Matrix
from pico.analysis.metrics.registry import METRICS
from pico.checkpoint import checkpoints
from pico.errors import PicoError

STEPS = (0, 1, 2, 4)
COMPONENTS = ["simple", "ov_circuit"]
METRICS_USED = ["debiased_cka", "per", "gini", "relative_change", "update_cosine", "path_over_displacement"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny`, and `wide`: more columns than rows, another width and another number of heads."""
    folder = tmp_path_factory.mktemp("models")
    write_run(folder / "tiny", steps=STEPS)
    write_run(folder / "wide", steps=(0, 2), d_model=48, n_heads=2, n_kv_heads=1)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def table(runs: Path, folder: Path, metrics: list[str], components: list[str], **settings) -> list[dict]:
    folder.mkdir(parents=True, exist_ok=True)
    analyze_run(runs / "tiny", "tiny", metrics, components, folder, **settings)
    return read_table(folder).to_pylist()


def activation(run: Path, index: int, layer: int) -> object:
    return checkpoints(run)[index].dynamics("val", "activations")[f"layers.{layer}.attention.o_proj"]


def of_o_proj(rows: list[dict], **wanted: object) -> list[dict]:
    wanted = {"params": '{"module":"attention.o_proj"}', "split": "val", "metric": "linear_cka"} | wanted
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_every_pair_of_checkpoints(runs: Path, tmp_path: Path) -> None:
    rows = table(runs, tmp_path / "t", ["linear_cka"], ["simple"], compare=["every", "last"])
    found = {(row["step"], row["target_step"]): row["value"] for row in of_o_proj(rows, layer=1)}
    assert set(found) == {(a, b) for a in STEPS for b in STEPS}
    for (a, b), value in found.items():
        x, y = (activation(runs / "tiny", STEPS.index(step), 1) for step in (a, b))
        assert value == pytest.approx(compute("linear_cka", x, y).value, rel=1e-9)
        assert found[b, a] == pytest.approx(value, rel=1e-9)


def test_chosen_steps_and_layers(runs: Path, tmp_path: Path) -> None:
    rows = table(runs, tmp_path / "t", ["linear_cka", "per"], ["simple"], compare=[2, "previous"], layers="1")
    assert {row["layer"] for row in rows} == {1}
    targets = {step: {row["target_step"] for row in of_o_proj(rows, step=step)} for step in STEPS}
    assert targets == {0: {2}, 1: {2, 0}, 2: {2, 1}, 4: {2}}


def test_another_run_is_compared_at_the_same_step(runs: Path, tmp_path: Path) -> None:
    others = {"wide": runs / "wide"}
    rows = table(
        runs, tmp_path / "t", ["linear_cka"], COMPONENTS, compare=["run:wide"], others=others, sidecars=tmp_path / "s"
    )
    assert {(row["step"], row["target_step"], row["target_run"]) for row in rows} == {(0, 0, "wide"), (2, 2, "wide")}
    (row,) = of_o_proj(rows, step=2, layer=0)
    y = activation(runs / "wide", 1, 0)
    assert row["value"] == pytest.approx(compute("linear_cka", activation(runs / "tiny", 2, 0), y).value, rel=1e-9)
    assert {row["head"] for row in rows if row["component"] == "ov_circuit"} == {None, 0, 1}  # it has two heads only


def test_layers_are_compared_with_each_other(runs: Path, tmp_path: Path) -> None:
    rows = table(runs, tmp_path / "t", ["linear_cka"], COMPONENTS, layer_pairs=True)
    (row,) = of_o_proj(rows, step=1, layer=0, target_layer=1)
    x, y = (activation(runs / "tiny", 1, layer) for layer in (0, 1))
    assert row["target_step"] == 1
    assert row["value"] == pytest.approx(compute("linear_cka", x, y).value, rel=1e-9)
    assert {row["head"] for row in rows if row["target_layer"] is not None} == {None}


def test_wrong_comparisons_are_named(runs: Path, tmp_path: Path) -> None:
    for compare, message in (([3], r"step 3(.|\n)*0, 1, 2, 4"), (["lats"], "'lats' is not understood"),
                             (["run:nobody"], "'nobody', which is not known")):  # fmt: skip
        with pytest.raises(PicoError, match=message):
            table(runs, tmp_path / "t", ["linear_cka"], ["simple"], compare=compare)


@pytest.mark.parametrize("name", sorted(name for name, metric in METRICS.items() if metric.gram))
def test_gram_factors_give_what_the_matrices_give(name: str) -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    for columns in (9, 60):
        x = 3 + generator.standard_normal((24, columns))
        y = x[:, :9] @ generator.standard_normal((9, 7)) + generator.standard_normal((24, 7))
        left, right = (Matrix(gram_factor(Matrix.of(one)), p=one.shape[1], dtype="float64") for one in (x, y))
        expected, found = compute(name, x, y), compute(name, left, right)
        assert found.status == expected.status
        assert found.value == (None if expected.value is None else pytest.approx(expected.value, rel=1e-9))


def test_sidecars_change_no_byte_and_a_new_metric_reads_no_state(runs: Path, tmp_path: Path) -> None:
    """After one analysis the states are destroyed: what another asks for of spectra and factors is all there."""
    run, sidecars = tmp_path / "run", tmp_path / "sidecars"
    shutil.copytree(runs / "tiny", run)
    more = [*METRICS_USED, "stable_rank", "linear_cka"]
    folders = {name: tmp_path / name for name in ("plain", "first", "again", "plain_more", "more")}
    for folder in folders.values():
        folder.mkdir()
    settings = {"compare": ["every"]}
    analyze_run(run, "tiny", METRICS_USED, COMPONENTS, folders["plain"], **settings)
    analyze_run(run, "tiny", METRICS_USED, COMPONENTS, folders["first"], **settings, sidecars=sidecars)
    analyze_run(run, "tiny", more, COMPONENTS, folders["plain_more"], **settings)
    assert contents(folders["first"]) == contents(folders["plain"])
    for path in run.rglob("*.safetensors"):
        path.write_bytes(b"gone")
    analyze_run(run, "tiny", METRICS_USED, COMPONENTS, folders["again"], **settings, sidecars=sidecars)
    assert contents(folders["again"]) == contents(folders["plain"])
    analyze_run(run, "tiny", more, COMPONENTS, folders["more"], **settings, sidecars=sidecars)
    assert contents(folders["more"]) == contents(folders["plain_more"])


def test_torn_sidecars_cost_time_only_and_stale_ones_go(runs: Path, tmp_path: Path) -> None:
    sidecars = tmp_path / "sidecars"
    table(runs, tmp_path / "first", METRICS_USED, ["simple"], sidecars=sidecars)
    stale = sidecars / "tiny" / "0_ffffffffffffffff"
    stale.mkdir()
    files = sorted(sidecars.rglob("*.*"))
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    table(runs, tmp_path / "second", METRICS_USED, ["simple"], sidecars=sidecars)
    assert contents(tmp_path / "second") == contents(tmp_path / "first")
    assert not stale.exists()
    assert len(list(sidecars.glob("tiny/*"))) == len(STEPS)


@pytest.mark.slow
def test_ray_workers_and_a_kill_give_the_same_bytes_with_sidecars(runs: Path, tmp_path: Path) -> None:
    import ray

    settings = {"compare": ["every"], "layer_pairs": True}
    table(runs, tmp_path / "alone", METRICS_USED, COMPONENTS, **settings)
    expected = contents(tmp_path / "alone")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    try:
        for workers in (1, 2):
            name = f"with {workers}"
            table(runs, tmp_path / name, METRICS_USED, COMPONENTS, **settings, sidecars=tmp_path / f"{name} kept",
                  workers=workers)  # fmt: skip
            assert contents(tmp_path / name) == expected
    finally:
        ray.shutdown()

    class Killed(BaseException):
        pass

    def die(done: int, total: int) -> None:
        if done == 5:
            raise Killed

    kept = {"sidecars": tmp_path / "kept"}
    with pytest.raises(Killed):
        table(runs, tmp_path / "killed", METRICS_USED, COMPONENTS, **settings, **kept, report=die)
    assert 0 < len(contents(tmp_path / "killed")) < len(STEPS)
    table(runs, tmp_path / "killed", METRICS_USED, COMPONENTS, **settings, **kept)
    assert contents(tmp_path / "killed") == expected


def test_the_working_folder_follows_comparisons(runs: Path, tmp_path: Path) -> None:
    def folder(**settings: object) -> Path:
        return analysis_folder(runs / "tiny", "tiny", ["per"], ["simple"], tmp_path, **settings)

    found = [folder(), folder(compare=["every"]), folder(layers=[0]), folder(layer_pairs=True),
             folder(others={"wide": runs / "wide"})]  # fmt: skip
    assert len(set(found)) == len(found)
    assert folder() == found[0]


def test_embeddings_are_in_the_table_as_layer_minus_1(tmp_path: Path) -> None:
    write_run(tmp_path / "tiny", steps=(0, 1))
    rows = table(tmp_path, tmp_path / "t", ["per", "gini", "relative_change"], ["embedding"])
    assert {(row["layer"], row["component"]) for row in rows} == {(-1, "embedding")}
    rows = table(tmp_path, tmp_path / "both", ["per"], ["embedding", "simple"], layers="0")
    assert {(row["layer"], row["component"]) for row in rows} == {(-1, "embedding"), (0, "simple")}
