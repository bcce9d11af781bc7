"""Training on Ray: the same bytes as in-process, our errors told once, a dead worker survived."""

import contextlib
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from pico.errors import PicoError
from pico.train.curve import Curve
from pico.train.run import pretrain

from .conftest import contents, make_spec, make_tokens, with_rescues

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


def test_two_workers_survive_the_death_of_one(tokens, tmp_path):
    spec = with_rescues(make_spec(workers=2, micro_batch_size=2, steps=1500), 0.2)
    victims: list[int] = []
    started = time.time()

    def kill_one(work: Path) -> None:
        while not list(work.glob("pretrain/*/rescue/step_*")):
            time.sleep(0.05)
        while not victims:
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):  # one that ended while we looked
                    ours = process.create_time() > started and "RayTrainWorker" in " ".join(process.cmdline())
                    if ours and not victims:
                        process.kill()
                        victims.append(process.pid)

    killer = threading.Thread(target=kill_one, args=(tmp_path / "two",), daemon=True)
    killer.start()
    starts: list[int] = []
    two = pretrain(spec, tokens, runs=tmp_path / "two", on_ray=True,
                   show=lambda event: starts.append(event["start"]) if "start" in event else None)  # fmt: skip
    assert len(victims) == 1
    assert len(starts) == 2
    assert starts[1] > 0
    one = pretrain(make_spec(steps=1500), tokens, runs=tmp_path / "one")
    curves = [[point.train_loss for point in Curve(work / "curve.jsonl").read()] for work in (two, one)]
    assert [len(curve) for curve in curves] == [1500, 1500]
    np.testing.assert_allclose(curves[0][:20], curves[1][:20], rtol=1e-5)
