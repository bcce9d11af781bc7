"""A capture of a run's checkpoints afterwards is, byte for byte, what training captured."""

import shutil
from pathlib import Path

import pytest

from pico.capture.commands import Own, capture_place, default_name
from pico.capture.places import find
from pico.capture.run import Settings
from pico.checkpoint import Checkpoint, checkpoints, verify
from pico.errors import PicoError
from pico.train.loop import train
from pico.train.spec import run_identity

from .conftest import contents, make_spec, make_tokens


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def trained(request, tmp_path_factory) -> tuple[Path, Path]:
    """(the run, its tokens)"""
    root = tmp_path_factory.mktemp("trained")
    spec, tokens, work = make_spec(precision=request.param), make_tokens(root / "tokens"), root / "work"
    work.mkdir()
    train(spec, tokens, work, run_identity(spec, tokens))
    return work / "model", tokens


def captured(target: Path, out: Path, tokens: Path, **own) -> list[Checkpoint]:
    return capture_place(find(str(target)), out, Settings(), Own(**own), tokens)


def test_every_checkpoint_of_a_run_gives_the_bytes_that_training_wrote(trained, tmp_path):
    run, tokens = trained
    made = captured(run, tmp_path / "out", tokens)
    assert [one.step for one in made] == [one.step for one in checkpoints(run)]
    for ours, theirs in zip(made, checkpoints(run), strict=True):
        verify(ours.folder)
        files = contents(ours.folder / "learning_dynamics")
        assert len(files) >= 4
        assert files == contents(theirs.folder / "learning_dynamics")
        assert contents(ours.folder)["model.safetensors"] == contents(theirs.folder)["model.safetensors"]
    assert default_name(find(str(run))) == "tiny"


def test_one_checkpoint_and_other_settings(trained, tmp_path):
    run, tokens = trained
    last = checkpoints(run)[-1].folder
    (made,) = captured(last, tmp_path / "out", tokens, layers=["attention.q_proj"], positions=2, batch_size=3)
    found = made.dynamics("val", "activations")
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        f"layers.{layer}.attention.q_proj": (6, 16) for layer in range(2)
    }


def test_an_interrupted_capture_goes_on_and_another_is_refused(trained, tmp_path):
    run, tokens = trained
    made = captured(run, tmp_path / "out", tokens)
    whole = contents(tmp_path / "out")
    kept = made[0].folder.stat().st_mtime_ns
    shutil.rmtree(made[-1].folder)
    captured(run, tmp_path / "out", tokens)
    assert contents(tmp_path / "out") == whole
    assert made[0].folder.stat().st_mtime_ns == kept
    with pytest.raises(PicoError, match="other checkpoints, or with other settings"):
        captured(run, tmp_path / "out", tokens, positions=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("...")
    with pytest.raises(PicoError, match="not an earlier capture"):
        captured(run, tmp_path / "mine", tokens)


def test_other_tokens_and_damaged_checkpoints_are_refused_by_name(trained, tmp_path):
    run, _ = trained
    other = make_tokens(tmp_path / "other", seed=5)
    with pytest.raises(PicoError, match=r"not the tokens .* heldout/code.parquet differs"):
        captured(run, tmp_path / "out", other)
    assert not (tmp_path / "out").exists()
    copy = shutil.copytree(run, tmp_path / "copy")
    path = checkpoints(copy)[0].folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(PicoError, match=r"model.safetensors was altered|bytes, not"):
        captured(copy, tmp_path / "torn", trained[1])
