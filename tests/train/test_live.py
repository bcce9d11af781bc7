"""Live curves, by the real writers: whole after a resume, drawn by `dvc plots`, and told what is missing."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.pretrain import history
from pico.config import Live
from pico.errors import PicoError
from pico.train.curve import Curve, Point
from pico.watch.live import watched

OFF = Live(dvclive=False)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed repository with DVC in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    (tmp_path / ".gitignore").write_text("/live/\n")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["git", "add", "-A"],
                    ["git", *author, "commit", "-qm", "first"]):  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
    return tmp_path


def points(first: int, last: int) -> list[Point]:
    return [Point(step, 0.1, 1 / step, 2.0, 3.0 if step % 5 == 0 else None) for step in range(first, last + 1)]


def follow(settings: Live, project: Path, start: int, last: int, model: str = "tiny") -> None:
    """The events of a run that goes on from `start`."""
    curve = Curve(project / "curve.jsonl")
    curve.restart(0)
    curve.append(points(1, start + 2))  # a little beyond the checkpoint: those steps come again
    with watched(settings, model, "smoke", history, project) as show:
        show({"worker": 0})
        show({"start": start, "steps": last, "curve": str(curve.path)})
        for step in range(start + 1, last + 1):
            show({"step": step, "points": [vars(point) for point in points(step, step)]})
        show({"warning": "something"})


def test_steps_that_come_again_after_a_worker_died_are_logged_once(project: Path) -> None:
    curve = Curve(project / "curve.jsonl")
    curve.restart(0)
    curve.append(points(1, 5))
    with watched(Live(), "tiny", "smoke", history, project) as show:
        for start in (0, 3):
            show({"start": start, "steps": 6, "curve": str(curve.path)})
            for step in range(start + 1, 7):
                show({"step": step, "points": [vars(point) for point in points(step, step)]})
    assert list(read(project, "train_loss")) == list(range(1, 7))


def read(project: Path, name: str, model: str = "tiny") -> dict[int, float]:
    with open(project / "live" / model / "plots" / "metrics" / f"{name}.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == len({row["step"] for row in rows}), "every step once"
    return {int(row["step"]): float(row[name]) for row in rows}


def test_dvc_draws_the_curves_of_all_models(project: Path) -> None:
    follow(Live(), project, 0, 7)
    follow(Live(), project, 0, 6, model="small")
    assert read(project, "train_loss") == {step: 1 / step for step in range(1, 8)}
    assert read(project, "heldout_loss") == {5: 3.0}
    paths = [f"live/{model}/plots/metrics/train_loss.tsv" for model in ("small", "tiny")]
    command = ["dvc", "plots", "show", "--json", "-x", "step", *paths]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["data"]
    drawn = {path: json.dumps(shown[path]) for path in paths}
    assert [drawn[path].count("0.14285714") for path in paths] == [0, 1], "1/7, of the model with a seventh step"


def test_a_resumed_curve_has_every_step_once(project: Path) -> None:
    follow(Live(), project, 0, 4)
    follow(Live(), project, 4, 9)
    assert read(project, "train_loss") == {step: 1 / step for step in range(1, 10)}


def test_values_that_cannot_be_drawn_are_left_out(project: Path) -> None:
    with watched(Live(), "tiny", "smoke", history, project) as show:
        show({"step": 2, "points": [vars(Point(1, 0.1, 2.0, 1.0)), vars(Point(2, 0.1, float("inf"), float("nan")))]})
    assert read(project, "train_loss") == {1: 2.0}
    assert read(project, "learning_rate") == {1: 0.1, 2: 0.1}


def test_tensorboard_files_hold_the_points(project: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    follow(Live(dvclive=False, tensorboard=True), project, 0, 6)
    follow(Live(dvclive=False, tensorboard=True), project, 3, 6)
    (path,) = (project / "runs" / "tensorboard" / "smoke" / "tiny").iterdir()
    data, found = path.read_bytes(), []
    while data:  # TFRecord: length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        found += [(event.step, value.tag, round(value.simple_value, 6))
                  for event in [Event.FromString(data[12 : 12 + size])] for value in event.summary.value]  # fmt: skip
        data = data[16 + size :]
    assert [(step, value) for step, tag, value in found if tag == "train_loss"] == [
        (step, round(1 / step, 6)) for step in range(1, 7)
    ]
    assert not (project / "live").exists()


def test_nothing_is_written_where_nothing_is_asked_for(project: Path) -> None:
    follow(OFF, project, 0, 3)
    assert not (project / "live").exists()
    assert not (project / "runs").exists()


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(PicoError, match="wandb is not installed"),
        watched(Live(dvclive=False, wandb="mine"), "a", "b", history),
    ):
        pass
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run([Path(sys.executable).parent / "dvc", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PicoError, match="first commit"), watched(Live(), "a", "b", history):
        pass
