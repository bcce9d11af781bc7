"""A run that was interrupted, killed or damaged ends as the undisturbed one, to the bit."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch

from pico.checkpoint import Checkpoint, checkpoints, verify
from pico.errors import PicoError
from pico.model import load_decoder
from pico.train.curve import Curve
from pico.train.loop import train
from pico.train.run import pretrain
from pico.train.spec import differing_keys, run_identity

from .conftest import contents, curve, make_spec, make_tokens, with_rescues


def interrupted(spec, tokens: Path, work: Path, after: int) -> None:
    """Runs until `after` updates are done, then leaves with a rescue checkpoint, as on SIGTERM."""
    work.mkdir(exist_ok=True)
    asked = iter(range(10**9))
    assert not train(spec, tokens, work, run_identity(spec, tokens), stop=lambda: next(asked) >= after)


@pytest.mark.parametrize("after", [3, 5, 11])
def test_a_resumed_run_is_the_undisturbed_one_to_the_bit(undisturbed, tmp_path, after):
    tokens, work = undisturbed
    mine = tmp_path / "work"
    interrupted(make_spec(), tokens, mine, after)
    assert len(curve(mine)) == after
    assert train(make_spec(), tokens, mine, run_identity(make_spec(), tokens))
    assert contents(mine / "model") == contents(work / "model")
    assert curve(mine) == curve(work)


def test_tied_embeddings_are_saved_under_both_names_and_resumed_to_the_bit(tokens, tmp_path):
    decoder = dataclasses.replace(make_spec().decoder, tied_embeddings=True)
    spec = dataclasses.replace(make_spec(), decoder=decoder)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    assert train(spec, tokens, whole, run_identity(spec, tokens))
    interrupted(spec, tokens, broken, 7)
    assert train(spec, tokens, broken, run_identity(spec, tokens))
    assert contents(broken / "model") == contents(whole / "model")
    last = checkpoints(whole / "model")[-1]
    assert torch.equal(last.model()["embedding_proj.weight"], last.model()["de_embedding_proj.weight"])
    assert load_decoder(last).config.tied_embeddings


def _damage_flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def _damage_tear(folder: Path) -> None:
    os.truncate(folder / "optimizer.safetensors", 100)


def _damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [_damage_flip, _damage_tear, _damage_manifest])
def test_a_damaged_checkpoint_is_named_and_survived(undisturbed, tmp_path, damage):
    tokens, work = undisturbed
    mine, spec = tmp_path / "work", make_spec()
    interrupted(spec, tokens, mine, 7)
    damage(mine / "rescue" / "step_00000007")
    (mine / "rescue" / ".step_00000008.partial").mkdir()
    events: list = []
    assert train(spec, tokens, mine, run_identity(spec, tokens), report=events.append)
    warnings = [event["warning"] for event in events if "warning" in event]
    assert len(warnings) == 1
    assert "step_00000007" in warnings[0]
    assert next(event for event in events if "start" in event)["start"] == 5
    assert contents(mine / "model") == contents(work / "model")


def test_an_early_checkpoint_that_was_damaged_is_made_again(undisturbed, tmp_path):
    tokens, work = undisturbed
    mine, spec = tmp_path / "work", make_spec()
    interrupted(spec, tokens, mine, 7)
    _damage_flip(mine / "model" / "checkpoints" / "step_00000002")
    assert train(spec, tokens, mine, run_identity(spec, tokens))
    assert contents(mine / "model") == contents(work / "model")


def test_a_torn_curve_is_survived(undisturbed, tmp_path):
    tokens, work = undisturbed
    mine, spec = tmp_path / "work", make_spec()
    interrupted(spec, tokens, mine, 7)
    path = mine / "curve.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert train(spec, tokens, mine, run_identity(spec, tokens))
    assert contents(mine / "model") == contents(work / "model")
    assert curve(mine) == curve(work)


def test_other_settings_or_data_are_refused_by_name(undisturbed, tmp_path):
    tokens, _ = undisturbed
    mine, spec = tmp_path / "work", make_spec()
    interrupted(spec, tokens, mine, 3)
    other = dataclasses.replace(spec, optimizer=spec.optimizer.model_copy(update={"lr": 0.5}))
    with pytest.raises(PicoError, match=r"settings\.optimizer\.lr: 0\.01 in the checkpoint, 0\.5 now"):
        train(other, tokens, mine, run_identity(other, tokens))
    changed = make_tokens(tmp_path / "other", seed=9)
    with pytest.raises(PicoError, match=r"data\.train/train-00000-of-00002\.parquet"):
        train(spec, changed, mine, run_identity(spec, changed))
    assert differing_keys({"a": {"b": 1}}, {"a": {}}) == ["a.b: None in the checkpoint, 1 now"]


def test_ctrl_c_saves_a_rescue_and_leaves(tmp_path, tokens, request):
    spec = make_spec(steps=100_000)
    # Where tests are started in the background of a shell, Ctrl-C is ignored.
    request.addfinalizer(
        partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))
    )

    def impatient() -> None:
        while not list(tmp_path.glob("pretrain/*/model/checkpoints/step_00000005")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=impatient, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        pretrain(spec, tokens, runs=tmp_path)
    (work,) = (tmp_path / "pretrain").iterdir()
    newest = max([*work.glob("rescue/step_*"), *work.glob("model/checkpoints/step_*")], key=lambda path: path.name)
    assert Checkpoint(newest).step == len(curve(work)) < 100_000


def test_the_curve_forgets_what_comes_after_a_resume(tmp_path, undisturbed):
    _, work = undisturbed
    path = tmp_path / "curve.jsonl"
    shutil.copy(work / "curve.jsonl", path)
    mine = Curve(path)
    mine.restart(4)
    assert [point.step for point in mine.read()] == [1, 2, 3, 4]
    assert json.loads(path.read_text().splitlines()[-1])[0] == 4


def test_a_full_disk_stops_the_run_and_leaves_all_before_it_whole(tokens, tmp_path, monkeypatch):
    spec = with_rescues(make_spec(), 1e-9)
    whole = pretrain(spec, tokens, runs=tmp_path / "whole")
    true_fsync, left = os.fsync, 45

    def fsync(file) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        true_fsync(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(PicoError, match="no space left while writing"):
        pretrain(spec, tokens, runs=tmp_path / "full")
    (work,) = (tmp_path / "full" / "pretrain").iterdir()
    kept = [verify(checkpoint.folder) for checkpoint in checkpoints(work / "model")]
    assert 1 < len(kept) < len(checkpoints(whole / "model"))
    left = 10**9
    assert contents(pretrain(spec, tokens, runs=tmp_path / "full") / "model") == contents(whole / "model")


@pytest.mark.parametrize("damage", ["{}", '{"files": {}, "format": 1}', '{"files": [1], "format": 1}', "[", "\xff"])
def test_any_damage_of_a_manifest_is_named(undisturbed, tmp_path, damage):
    folder = shutil.copytree(checkpoints(undisturbed[1] / "model")[-1].folder, tmp_path / "step_00000012")
    (folder / "manifest.json").write_text(damage)
    with pytest.raises(PicoError, match=r"manifest\.json is damaged"):
        verify(folder)


def test_a_flipped_bit_anywhere_in_a_manifest_is_named(undisturbed, tmp_path):
    folder = shutil.copytree(checkpoints(undisturbed[1] / "model")[-1].folder, tmp_path / "step_00000012")
    sound = (folder / "manifest.json").read_bytes()
    for place in range(0, len(sound), 7):
        spoilt = bytearray(sound)
        spoilt[place] ^= 1 << place % 8
        (folder / "manifest.json").write_bytes(spoilt)
        with suppress(PicoError):
            verify(folder)
            assert json.loads(spoilt) == json.loads(sound)


def test_an_altered_curve_is_not_gone_on_from(tokens, tmp_path):
    spec = with_rescues(make_spec(), 1e-9)
    whole = pretrain(spec, tokens, runs=tmp_path / "whole")
    work = tmp_path / "broken"
    interrupted(spec, tokens, work, after=8)
    lines = (work / "curve.jsonl").read_text().splitlines(keepends=True)
    digit = lines[6].index(".") + 3
    lines[6] = lines[6][:digit] + str((int(lines[6][digit]) + 1) % 10) + lines[6][digit + 1 :]
    (work / "curve.jsonl").write_text("".join(lines))
    said = []
    assert train(spec, tokens, work, run_identity(spec, tokens), report=said.append)
    assert any("the loss curve ends at step 6" in event.get("warning", "") for event in said)
    assert curve(work) == curve(whole)


def test_a_folder_with_another_name_is_no_checkpoint(undisturbed, tmp_path):
    model = shutil.copytree(undisturbed[1] / "model", tmp_path / "model")
    shutil.copytree(model / "checkpoints" / "step_00000012", model / "checkpoints" / "step_00000012 copy")
    assert [one.step for one in checkpoints(model)] == [one.step for one in checkpoints(undisturbed[1] / "model")]
