"""Folders of all kinds become a run, and the analysis makes its table of them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from synthetic_runs import write_run
from tiny_models import write_model, write_tokenizer

from pico.analysis.engine.table import read_table
from pico.capture.commands import analyze_place
from pico.capture.places import find
from pico.capture.run import MODULES, Settings, captured_run
from pico.checkpoint import Checkpoint, checkpoints, verify, write_checkpoint
from pico.errors import PicoError
from pico.export.hugging_face import write_model as export
from pico.model import Decoder, DecoderConfig
from pico.report.any_model import write_pictures
from pico.train.capture import capture

CONFIG = DecoderConfig(
    d_model=32,
    n_layers=2,
    vocab_size=256,
    max_seq_len=64,
    attention_n_heads=4,
    attention_n_kv_heads=2,
    activation_hidden_dim=48,
)
SMALL = {"rows": 6, "seq_len": 20, "positions": 5}


def pico_checkpoint(run: Path, step: int = 3) -> Checkpoint:
    weights = {name: 4 * weight for name, weight in Decoder(CONFIG, seed=step).state_dict().items()}
    folder = run / "checkpoints" / f"step_{step:08d}"
    return write_checkpoint(folder, model=weights, config=CONFIG.to_dict(), trainer={"step": step, "tokens": 0})


def published(run: Path, step: int, *, dynamics: bool = True) -> Path:
    """As the published layout is known: prefixed weights, config with its model_type, states in .pt files."""
    folder = run / "checkpoints" / f"step_{step}"
    folder.mkdir(parents=True)
    weights = Decoder(CONFIG, seed=step).state_dict()
    save_file({f"pico_decoder.{name}": weight for name, weight in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "pico_decoder", "batch_size": 4, **CONFIG.to_dict()}))
    write_tokenizer(folder)
    if dynamics:
        (folder / "learning_dynamics").mkdir()
        generator = torch.Generator().manual_seed(step)
        names = [f"layers.{layer}.{module}" for layer in range(2) for module in MODULES]
        for split in ("train", "val"):
            states = {name: torch.randn(8, weights[f"{name}.weight"].shape[0], generator=generator) for name in names}
            torch.save(states, folder / "learning_dynamics" / f"{split}_activations.pt")
            gradients = {name: torch.randn(weights[f"{name}.weight"].shape, generator=generator) for name in names}
            torch.save(gradients, folder / "learning_dynamics" / f"{split}_gradients.pt")
    return folder


@pytest.mark.parametrize("kind", ["gpt_neox", "opt", "llama", "gpt2"])
def test_revisions_of_a_hugging_face_model_give_the_usual_table(kind: str, tmp_path: Path) -> None:
    for step in (0, 512):
        write_model(tmp_path / "suite" / f"step{step}", kind, seed=step)
    place = find(str(tmp_path / "suite"))
    assert (place.name, place.kind, list(place.folders)) == ("suite", "hugging_face", [0, 512])
    metrics = ["debiased_cka", "per", "relative_change"]
    settings = Settings(**SMALL, tokens_per_step=10)
    count, run = analyze_place(place, settings, tmp_path / "out", name=kind, metrics=metrics, root=tmp_path / "runs")
    rows = read_table(tmp_path / "out").to_pylist()
    assert len(rows) == count
    assert {"cka", "spectra"} <= set(write_pictures(tmp_path / "out", run, kind))
    assert {(row["run"], row["step"], row["tokens"]) for row in rows} == {(kind, 0, 0), (kind, 512, 5120)}
    assert {row["metric"] for row in rows} == set(metrics)
    assert {row["split"] for row in rows} == {None, "val"}
    assert {row["head"] for row in rows if row["component"] == "ov_circuit"} == {None, 0, 1, 2, 3}
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["n"] for row in rows if row["data_type"] == "activations"} == {6 * 5}
    itself = [row["value"] for row in rows if row["metric"] == "debiased_cka" and row["step"] == 512]
    assert itself == pytest.approx([1] * len(itself))


def test_an_exported_model_has_the_states_of_its_checkpoint(tmp_path: Path) -> None:
    """pico's decoder and its export, a Llama with reordered q and k, give the same activations, gradients, weights."""
    checkpoint = pico_checkpoint(tmp_path / "run")
    exported = tmp_path / "exported"
    exported.mkdir()
    export(exported, checkpoint, dtype="float32", eos_id=0)
    write_tokenizer(exported)
    modules = ("attention.q_proj", "attention.k_proj", *MODULES)
    text = tmp_path / "text.txt"
    text.write_text("Row i of every matrix is of sample i, and of nobody else's. " * 10)
    settings = Settings(**SMALL, text=text, tokenizer=exported, modules=modules)
    runs = [captured_run(find(str(path)), settings, tmp_path / "work")[0] for path in (tmp_path / "run", exported)]
    ours, theirs = (checkpoints(run)[0] for run in runs)
    for kind in ("activations", "gradients"):
        expected, found = ours.dynamics("val", kind), theirs.dynamics("val", kind)
        assert expected.keys() == found.keys()
        for name in expected:
            assert torch.allclose(expected[name], found[name], rtol=1e-3, atol=1e-5), name
    weights = ours.model()
    for name, weight in theirs.model().items():
        assert torch.equal(weight, weights[name])


def test_published_checkpoints_keep_the_states_they_have(tmp_path: Path) -> None:
    folders = {step: published(tmp_path / "tiny", step) for step in (0, 1000)}
    (tmp_path / "tiny" / "checkpoints" / "latest").symlink_to("step_1000", target_is_directory=True)
    place = find(str(tmp_path / "tiny"))
    assert (place.kind, list(place.folders)) == ("published", [0, 1000])
    analyze_place(place, Settings(), tmp_path / "out", name="tiny", metrics=["per"], root=tmp_path / "work")
    rows = read_table(tmp_path / "out").to_pylist()
    assert {row["split"] for row in rows} == {None, "train", "val"}
    run, layers = captured_run(place, Settings(), tmp_path / "work")
    assert layers == [0, 1]
    made = checkpoints(run)[1]
    verify(made.folder)
    stored = torch.load(folders[1000] / "learning_dynamics" / "val_activations.pt", weights_only=True)
    assert torch.equal(made.dynamics("val", "activations")["layers.1.swiglu.w_2"], stored["layers.1.swiglu.w_2"])


def test_published_checkpoints_without_states_are_run_on_the_text(tmp_path: Path) -> None:
    folder = published(tmp_path / "tiny", 5, dynamics=False)
    made = checkpoints(captured_run(find(str(folder)), Settings(**SMALL), tmp_path / "work")[0])[0]
    model = Decoder(CONFIG, seed=5)
    ids = torch.tensor(list(range(6 * 21))).view(6, 21)
    parquet = tmp_path / "rows.parquet"
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"input_ids": [row.tolist() for row in ids]}), parquet)
    again = checkpoints(captured_run(find(str(folder)), Settings(**SMALL, text=parquet), tmp_path / "work")[0])[0]
    expected = capture(model, ids, suffixes=MODULES, positions=5, micro_batch_size=4).activations
    assert made.dynamics("val", "activations").keys() == expected.keys()
    for name, tensor in again.dynamics("val", "activations").items():
        assert torch.equal(tensor, expected[name])


def test_a_pico_run_is_analysed_where_it_is(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=(0, 1))
    place = find(str(tmp_path / "run"))
    assert captured_run(place, Settings(layers="1"), tmp_path / "work") == (tmp_path / "run", [1])
    analyze_place(place, Settings(layers="1"), tmp_path / "out", name="r", metrics=["per"], root=tmp_path / "work")
    assert {row["layer"] for row in read_table(tmp_path / "out").to_pylist()} == {1}
    with pytest.raises(PicoError, match="one checkpoint of a pico run"):
        captured_run(find(str(tmp_path / "run" / "checkpoints" / "step_00000001")), Settings(), tmp_path / "work")


def test_captured_steps_are_kept_and_follow_what_they_depend_on(folders: dict[str, Path], tmp_path: Path) -> None:
    place = find(str(folders["opt"]))
    told: list[tuple[int, int]] = []
    run, _ = captured_run(place, Settings(**SMALL), tmp_path, lambda *done: told.append(done))
    written = (run / "checkpoints" / "step_00000000" / "model.safetensors").stat().st_mtime_ns
    assert captured_run(place, Settings(**SMALL), tmp_path)[0] == run
    assert (run / "checkpoints" / "step_00000000" / "model.safetensors").stat().st_mtime_ns == written
    assert told == [(1, 1)]
    copy = tmp_path / "copy"
    shutil.copytree(folders["opt"], copy)
    assert captured_run(find(str(copy)), Settings(**SMALL), tmp_path)[0] == run  # it is the contents that count
    assert captured_run(place, Settings(**SMALL | {"rows": 5}), tmp_path)[0] != run
    one, layers = captured_run(place, Settings(**SMALL, layers="1"), tmp_path)
    assert layers == [1]
    assert {name.split(".")[1] for name in checkpoints(one)[0].dynamics("val", "activations")} == {"1"}


def test_only_an_earlier_analysis_is_replaced(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=(0,))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(PicoError, match="not an earlier analysis"):
        analyze_place(find(str(tmp_path / "run")), Settings(), tmp_path / "mine", name="r", root=tmp_path / "work")
    assert (tmp_path / "mine" / "thesis.txt").exists()
