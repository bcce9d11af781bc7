"""Training on Ray: the same bytes as in-process, our errors told once, a dead worker survived."""

import dataclasses
import os
import shutil
import signal
import time

import numpy as np
import pytest

from pico.config import Checkpoints
from pico.errors import PicoError
from pico.train.curve import Curve
from pico.train.run import open_run, pretrain

from .conftest import contents, make_spec, make_tokens

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield make_tokens(tmp_path_factory.mktemp("ray") / "tokens")
    ray.shutdown()


def test_one_worker_leaves_the_bytes_of_this_process(tokens, tmp_path):
    events: list = []
    on_ray = pretrain(make_spec(), tokens, runs=tmp_path / "ray", on_ray=True, show=events.append)
    here = pretrain(make_spec(), tokens, runs=tmp_path / "here")
    assert contents(on_ray / "model") == contents(here / "model")
    assert [event["step"] for event in events if "step" in event][-1] == 12


def test_an_error_of_ours_comes_back_as_it_was(tokens, tmp_path):
    spec = make_spec()
    layers = spec.learning_dynamics.model_copy(update={"layers": ["nonsense"]})
    object.__setattr__(spec, "learning_dynamics", layers)
    with pytest.raises(PicoError, match="no layer is named 'nonsense'"):
        pretrain(spec, tokens, runs=tmp_path, on_ray=True)


def test_an_error_that_only_the_first_of_two_workers_meets_ends_both(tokens, tmp_path):
    spec = make_spec(workers=2, micro_batch_size=2)
    other = pretrain(make_spec(), tokens, runs=tmp_path / "other")
    shutil.copytree(other / "model", open_run(spec, tokens, tmp_path / "runs").folder / "model")
    with pytest.raises(PicoError, match="this checkpoint is of another run"):
        pretrain(spec, tokens, runs=tmp_path / "runs", on_ray=True)


def test_two_workers_survive_the_death_of_one_and_then_of_the_other(tokens, tmp_path):
    steps, checkpoints = 500, Checkpoints(every=250, rescue_seconds=0.2)
    spec = dataclasses.replace(make_spec(workers=2, micro_batch_size=2, steps=steps), checkpoints=checkpoints)
    processes: dict[int, int] = {}
    killed: list[int] = []
    starts: list[int] = []

    def show(event: dict) -> None:
        if "worker" in event:
            processes[event["worker"]] = event["process"]
        elif "start" in event:
            starts.append(event["start"])
        elif "step" in event and len(killed) < len(starts) <= 2 and event["step"] >= starts[-1] + 30:
            victim = 2 - len(starts)  # rank 1, which writes nothing, and then rank 0, which writes everything
            os.kill(processes[victim], signal.SIGKILL)
            killed.append(victim)

    two = pretrain(spec, tokens, runs=tmp_path / "two", on_ray=True, show=show)
    assert killed == [1, 0]
    assert len(starts) == 3
    assert 0 < starts[1] < starts[2], "each time it went on from a rescue checkpoint"
    one = pretrain(dataclasses.replace(make_spec(steps=steps), checkpoints=checkpoints), tokens, runs=tmp_path / "one")
    curves = [[point.train_loss for point in Curve(work / "curve.jsonl").read()] for work in (two, one)]
    assert [len(curve) for curve in curves] == [steps, steps]
    np.testing.assert_allclose(curves[0][:20], curves[1][:20], rtol=1e-5)


def killing(times: int):
    """Takes events; kills the worker of a run of one, `times` times, each time after some rescue checkpoints."""
    starts: list[int] = []
    killed: list[int] = []
    begun = time.monotonic()

    def show(event: dict) -> None:
        nonlocal begun
        if "worker" in event:
            show.process = event["process"]  # type: ignore[attr-defined]
        elif "start" in event:
            starts.append(event["start"])
            begun = time.monotonic()
        elif "step" in event and len(killed) < min(times, len(starts)) and time.monotonic() - begun > 1.5:
            killed.append(event["step"])
            os.kill(show.process, signal.SIGKILL)  # type: ignore[attr-defined]

    return show, starts


def test_one_worker_that_is_killed_goes_on_and_leaves_the_same_bytes(tokens, tmp_path):
    spec = dataclasses.replace(make_spec(steps=4000), checkpoints=Checkpoints(every=2000, rescue_seconds=0.2))
    show, starts = killing(times=2)
    killed = pretrain(spec, tokens, runs=tmp_path / "killed", on_ray=True, show=show)
    whole = pretrain(spec, tokens, runs=tmp_path / "whole")
    assert len(starts) == 3
    assert 0 < starts[1] < starts[2], "each time it went on from a rescue checkpoint"
    assert contents(killed / "model") == contents(whole / "model")
    assert Curve(killed / "curve.jsonl").read() == Curve(whole / "curve.jsonl").read()


def test_a_worker_that_keeps_dying_ends_the_run(tokens, tmp_path, monkeypatch):
    import ray

    monkeypatch.setattr("pico.train.distributed.RESTARTS", 0)
    show, _ = killing(times=1)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        pretrain(make_spec(steps=100_000), tokens, runs=tmp_path, on_ray=True, show=show)
