"""The run as a whole: what it leaves, the same bytes each time, and the same for every split of the batch."""

import dataclasses

import numpy as np
import pytest
import torch

from pico.checkpoint import checkpoints
from pico.config import LearningDynamics
from pico.errors import PicoError
from pico.train.batches import Batches, round_robin
from pico.train.checkpoints import exclusive
from pico.train.curve import write_csv
from pico.train.parallel import World
from pico.train.run import pretrain

from .conftest import contents, curve, make_spec, with_rescues


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


def test_rescues_are_written_between_and_only_two_are_kept(tmp_path, tokens):
    spec = with_rescues(make_spec(), 1e-6)
    work = pretrain(spec, tokens, runs=tmp_path)
    assert [path.name for path in sorted((work / "rescue").iterdir())] == ["step_00000009", "step_00000011"]


def test_a_run_is_locked(tmp_path, monkeypatch):
    monkeypatch.setattr("pico.train.checkpoints.LOCK_SECONDS", 0.1)
    with exclusive(tmp_path), pytest.raises(PicoError, match="another process"), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


def test_batches_are_functions_of_step_and_world_alone(tokens):
    spec = make_spec()
    batches = Batches(spec, tokens)
    whole = batches.of_update(3)
    halves = [batches.of_update(3, World(rank, 2).shard(8)) for rank in range(2)]
    assert torch.equal(torch.cat(halves), whole)
    dynamics = batches.dynamics("train", 3)
    assert torch.equal(dynamics, torch.cat([batches.of_update(3), batches.of_update(4)])[:12])
    assert torch.equal(batches.dynamics("val", 0), batches.dynamics("val", 9))


def test_the_held_out_batch_takes_the_domains_in_turn():
    rows = {"b": np.array([[10], [11], [12]]), "a": np.array([[0]])}
    assert round_robin(rows, 3).ravel().tolist() == [0, 10, 11]
    assert round_robin(rows, 99).ravel().tolist() == [0, 10, 11, 12]
