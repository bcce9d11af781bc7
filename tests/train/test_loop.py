"""The run as a whole: exact, resumable, honest about damage, and the same for every split of the batch."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pico.checkpoint import Checkpoint, checkpoints
from pico.config import LearningDynamics
from pico.errors import PicoError
from pico.model import load_decoder
from pico.train.batches import Batches, round_robin
from pico.train.curve import Curve, write_csv
from pico.train.keep import exclusive
from pico.train.loop import train
from pico.train.parallel import _Loss
from pico.train.run import pretrain
from pico.train.spec import differing_keys, identity
from pico.train.world import World

from .conftest import contents, make_spec, make_tokens, with_rescues


def curve(work: Path) -> list:
    return Curve(work / "curve.jsonl").read()


def interrupted(spec, tokens: Path, work: Path, after: int) -> None:
    """Runs until `after` updates are done, then leaves with a rescue checkpoint, as on SIGTERM."""
    work.mkdir(exist_ok=True)
    asked = iter(range(10**9))
    assert not train(spec, tokens, work, identity(spec, tokens), stop=lambda: next(asked) >= after)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    tokens = make_tokens(folder / "tokens")
    return tokens, pretrain(make_spec(), tokens, runs=folder / "runs")


def test_two_runs_leave_the_same_bytes(undisturbed, tmp_path):
    tokens, work = undisturbed
    again = pretrain(make_spec(), tokens, runs=tmp_path)
    assert contents(again / "model") == contents(work / "model")
    assert (again / "curve.jsonl").read_bytes() == (work / "curve.jsonl").read_bytes()


def test_what_a_run_leaves(undisturbed, tmp_path):
    _, work = undisturbed
    found = checkpoints(work / "model")
    assert [each.step for each in found] == [0, 1, 2, 4, 5, 10, 12]
    assert [(each.folder / "optimizer.safetensors").exists() for each in found] == [False] * 6 + [True]
    last = found[-1]
    assert (last.trainer["step"], last.trainer["tokens"]) == (12, 12 * 8 * 16)
    assert last.optimizer()["output_norm.weight.step"] == 12
    assert last.dynamics("val", "activations")["layers.1.swiglu.w_2"].shape == (9 * 4, 16)
    assert last.dynamics("train", "activations")["layers.1.swiglu.w_2"].shape == (12 * 4, 16)
    assert list(last.dynamics("train", "gradients")) == sorted(
        f"layers.{i}.{name}.weight" for i in range(2) for name in ("attention.v_proj", "swiglu.w_2")
    )
    points = curve(work)
    assert [point.step for point in points] == list(range(1, 13))
    assert [point.step for point in points if point.heldout_loss is not None] == [5, 10, 12]
    assert points[-1].train_loss < points[0].train_loss - 0.2
    write_csv(points, 128, tmp_path / "curve.csv")
    lines = (tmp_path / "curve.csv").read_text().splitlines()
    assert lines[0] == "step,tokens,learning_rate,train_loss,gradient_norm,heldout_loss"
    assert lines[1].startswith("1,128,0.005,")
    assert lines[1].endswith(",")
    assert len(lines) == 13


def test_no_path_is_in_a_checkpoint(undisturbed):
    tokens, work = undisturbed
    for path in (work / "model").rglob("*.json"):
        assert str(tokens.parent) not in path.read_text()


@pytest.mark.parametrize("after", [3, 5, 11])
def test_a_resumed_run_is_the_undisturbed_one_to_the_bit(undisturbed, tmp_path, after):
    tokens, work = undisturbed
    mine = tmp_path / "work"
    interrupted(make_spec(), tokens, mine, after)
    assert len(curve(mine)) == after
    assert train(make_spec(), tokens, mine, identity(make_spec(), tokens))
    assert contents(mine / "model") == contents(work / "model")
    assert curve(mine) == curve(work)


def test_tied_embeddings_are_saved_under_both_names_and_resumed_to_the_bit(tokens, tmp_path):
    decoder = dataclasses.replace(make_spec().decoder, tied_embeddings=True)
    spec = dataclasses.replace(make_spec(), decoder=decoder)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    assert train(spec, tokens, whole, identity(spec, tokens))
    interrupted(spec, tokens, broken, 7)
    assert train(spec, tokens, broken, identity(spec, tokens))
    assert contents(broken / "model") == contents(whole / "model")
    last = checkpoints(whole / "model")[-1]
    assert torch.equal(last.model()["embedding_proj.weight"], last.model()["de_embedding_proj.weight"])
    assert load_decoder(last).config.tied_embeddings


def test_capturing_and_evaluating_do_not_change_training(undisturbed, tmp_path):
    tokens, work = undisturbed
    spec = make_spec(eval_every=1000)
    spec = dataclasses.replace(spec, learning_dynamics=LearningDynamics(layers=[], batch_size=1, positions=1))
    bare = pretrain(spec, tokens, runs=tmp_path)
    mine, full = checkpoints(bare / "model")[-1], checkpoints(work / "model")[-1]
    for ours, theirs in ((mine.model(), full.model()), (mine.optimizer(), full.optimizer())):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [(p.train_loss, p.gradient_norm) for p in curve(bare)] == [
        (p.train_loss, p.gradient_norm) for p in curve(work)
    ]


@pytest.mark.parametrize("micro_batch_size", [1, 2, 8])
def test_the_micro_batch_changes_rounding_only(undisturbed, tmp_path, micro_batch_size):
    tokens, work = undisturbed
    other = pretrain(make_spec(micro_batch_size=micro_batch_size), tokens, runs=tmp_path)
    ours, theirs = [np.array([(p.train_loss, p.gradient_norm) for p in curve(w)]) for w in (other, work)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


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
    assert train(spec, tokens, mine, identity(spec, tokens), tell=events.append)
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
    assert train(spec, tokens, mine, identity(spec, tokens))
    assert contents(mine / "model") == contents(work / "model")


def test_a_torn_curve_is_survived(undisturbed, tmp_path):
    tokens, work = undisturbed
    mine, spec = tmp_path / "work", make_spec()
    interrupted(spec, tokens, mine, 7)
    path = mine / "curve.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert train(spec, tokens, mine, identity(spec, tokens))
    assert contents(mine / "model") == contents(work / "model")
    assert curve(mine) == curve(work)


def test_other_settings_or_data_are_refused_by_name(undisturbed, tmp_path):
    tokens, _ = undisturbed
    mine, spec = tmp_path / "work", make_spec()
    interrupted(spec, tokens, mine, 3)
    other = dataclasses.replace(spec, optimizer=spec.optimizer.model_copy(update={"lr": 0.5}))
    with pytest.raises(PicoError, match=r"settings\.optimizer\.lr: 0\.01 in the checkpoint, 0\.5 now"):
        train(other, tokens, mine, identity(other, tokens))
    changed = make_tokens(tmp_path / "other", seed=9)
    with pytest.raises(PicoError, match=r"data\.train/train-00000-of-00002\.parquet"):
        train(spec, changed, mine, identity(spec, changed))
    assert differing_keys({"a": {"b": 1}}, {"a": {}}) == ["a.b: None in the checkpoint, 1 now"]


def test_a_loss_that_is_not_finite_stops_at_its_step_and_is_not_stepped_on(tmp_path, tokens, monkeypatch):
    import pico.train.step as loop

    spec, broken_at = make_spec(), 6
    true_rate = loop.learning_rate

    def explosive(update: int, **settings: object) -> float:
        return 1e38 if update == broken_at - 1 else true_rate(update, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "learning_rate", explosive)
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(PicoError, match=f"step {broken_at + 1} is (nan|inf)"):
        train(spec, tokens, work, identity(spec, tokens))
    assert checkpoints(work / "model")[-1].step == 5
    assert all(np.isfinite([p.train_loss, p.gradient_norm]).all() for p in curve(work))
    saved = load_file(work / "nonfinite" / f"step_{broken_at + 1:08d}.safetensors")["input_ids"]
    assert torch.equal(saved, Batches(spec, tokens).of_update(broken_at))


def break_updates(monkeypatch, spec, tokens, updates):
    """Makes the loss infinite on the batches of these updates, whenever they come."""
    batches = Batches(spec, tokens)
    broken = {tuple(row.tolist()) for update in updates for row in batches.of_update(update)[:, :-1]}
    forward = _Loss.forward

    def explosive(self, input_ids, targets):
        loss = forward(self, input_ids, targets)
        return loss * float("inf") if tuple(input_ids[0].tolist()) in broken else loss

    monkeypatch.setattr(_Loss, "forward", explosive)


def test_an_update_that_is_not_finite_is_left_out_where_asked(tmp_path, tokens, monkeypatch):
    spec, told = make_spec(on_nonfinite="skip"), []
    break_updates(monkeypatch, spec, tokens, [5])
    work = tmp_path / "work"
    work.mkdir()
    assert train(spec, tokens, work, identity(spec, tokens), tell=told.append)
    assert [p.step for p in curve(work) if not np.isfinite(p.train_loss)] == [6]
    assert any("update left out: the loss of step 6 is inf" in event.get("warning", "") for event in told)
    last = checkpoints(work / "model")[-1]
    assert last.optimizer()["output_norm.weight.step"] == spec.training.steps - 1
    assert all(value.isfinite().all() for value in last.model().values())
    saved = load_file(work / "nonfinite" / "step_00000006.safetensors")["input_ids"]
    assert torch.equal(saved, Batches(spec, tokens).of_update(5))
    write_csv(curve(work), 128, tmp_path / "curve.csv")
    assert (tmp_path / "curve.csv").read_text().splitlines()[6].startswith("6,768,0.0073,,,")


def test_left_out_updates_do_not_go_on_for_ever(tmp_path, tokens, monkeypatch):
    spec = make_spec(on_nonfinite="skip", steps=20)
    break_updates(monkeypatch, spec, tokens, range(3, 20))
    (tmp_path / "work").mkdir()
    with pytest.raises(PicoError, match="step 13 is inf"):
        train(spec, tokens, tmp_path / "work", identity(spec, tokens))


def test_rescues_are_written_between_and_only_two_are_kept(tmp_path, tokens):
    spec = with_rescues(make_spec(), 1e-6)
    work = pretrain(spec, tokens, runs=tmp_path)
    assert [path.name for path in sorted((work / "rescue").iterdir())] == ["step_00000009", "step_00000011"]


def test_a_run_is_locked(tmp_path, monkeypatch):
    monkeypatch.setattr("pico.train.keep.LOCK_SECONDS", 0.1)
    with exclusive(tmp_path), pytest.raises(PicoError, match="another process"), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


def test_ctrl_c_saves_a_rescue_and_leaves(tmp_path, tokens):
    spec = make_spec(steps=100_000)

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


def test_batches_are_functions_of_step_and_world_alone(tokens):
    spec = make_spec()
    batches = Batches(spec, tokens)
    whole = batches.of_update(3)
    halves = [batches.of_update(3, World(rank, 2).share(8)) for rank in range(2)]
    assert torch.equal(torch.cat(halves), whole)
    dynamics = batches.dynamics("train", 3)
    assert torch.equal(dynamics, torch.cat([batches.of_update(3), batches.of_update(4)])[:12])
    assert torch.equal(batches.dynamics("val", 0), batches.dynamics("val", 9))


def test_the_held_out_batch_takes_the_domains_in_turn():
    rows = {"b": np.array([[10], [11], [12]]), "a": np.array([[0]])}
    assert round_robin(rows, 3).ravel().tolist() == [0, 10, 11]
    assert round_robin(rows, 99).ravel().tolist() == [0, 10, 11, 12]


def _one_of_several(rank: int, size: int, sharding: str, tokens: Path, work: Path, meeting: Path, after: int) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    spec = make_spec(workers=size, micro_batch_size=1, sharding=sharding)
    asked = iter(range(10**9))
    train(spec, tokens, work, identity(spec, tokens), world=World(rank, size), stop=lambda: next(asked) >= after)
    torch.distributed.destroy_process_group()


def run_several(size: int, sharding: str, tokens: Path, work: Path, after: int = 10**9) -> None:
    """Trains in `size` processes, which are asked to leave at the `after`-th time of asking."""
    work.mkdir(exist_ok=True)
    meeting = work.with_name(f"{work.name}-meeting-{after}")
    arguments = (size, sharding, tokens, work, meeting, after)
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_one_of_several, args=(rank, *arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("size", "sharding"), [(2, "none"), (4, "none"), (2, "full")])
def test_several_processes_agree_with_one(undisturbed, tmp_path, size, sharding):
    tokens, single = undisturbed
    work = tmp_path / "work"
    run_several(size, sharding, tokens, work)
    ours, theirs = (np.array([(p.train_loss, p.gradient_norm) for p in curve(w)]) for w in (work, single))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert curve(work)[-1].heldout_loss == pytest.approx(curve(single)[-1].heldout_loss, rel=1e-5)
    for mine, one in zip(checkpoints(work / "model"), checkpoints(single / "model"), strict=True):
        assert mine.step == one.step
        for kind in ("activations", "gradients", "gradient_norms"):
            found, expected = mine.dynamics("val", kind), one.dynamics("val", kind)
            assert list(found) == list(expected)
            for name, tensor in found.items():
                torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)
    assert mine.optimizer().keys() == one.optimizer().keys()
    for name, tensor in mine.model().items():
        torch.testing.assert_close(tensor, one.model()[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_sharded_run_that_was_interrupted_is_the_undisturbed_one_to_the_bit(undisturbed, tmp_path):
    tokens, _ = undisturbed
    run_several(2, "full", tokens, tmp_path / "whole")
    run_several(2, "full", tokens, tmp_path / "broken", after=1)  # processes ask every ten updates: at 10 of 12
    assert len(curve(tmp_path / "broken")) == 10
    run_several(2, "full", tokens, tmp_path / "broken")
    assert contents(tmp_path / "broken" / "model") == contents(tmp_path / "whole" / "model")
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")


KILLED = """
import sys
import threading
from pathlib import Path
sys.path.insert(0, {root!r})
from pico.train.run import pretrain
from tests.train.conftest import make_spec, with_rescues
pretrain(with_rescues(make_spec(steps=60), 0.02), Path({tokens!r}), runs=Path({runs!r}))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_the_undisturbed_one(tmp_path, tokens):
    whole = pretrain(with_rescues(make_spec(steps=60), 0.02), tokens, runs=tmp_path / "whole")
    root, runs = str(Path(__file__).parents[2]), tmp_path / "runs"
    script = KILLED.format(root=root, tokens=str(tokens), runs=str(runs))
    work = runs / "pretrain" / whole.name
    moments = np.random.default_rng(0).uniform(0.05, 0.6, 3)
    for moment in moments:
        process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
        seen = len(list(work.glob("**/step_*"))) if work.exists() else -1
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:  # let it get to work, then strike
            if work.exists() and len(list(work.glob("**/step_*"))) != seen:
                break
            time.sleep(0.01)
        time.sleep(moment)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False).returncode == 0
    assert contents(work / "model") == contents(whole / "model")
    assert curve(work) == curve(whole)


def test_the_curve_forgets_what_comes_after_a_resume(tmp_path, undisturbed):
    _, work = undisturbed
    path = tmp_path / "curve.jsonl"
    shutil.copy(work / "curve.jsonl", path)
    mine = Curve(path)
    mine.restart(4)
    assert [point.step for point in mine.read()] == [1, 2, 3, 4]
    assert json.loads(path.read_text().splitlines()[-1])[0] == 4
