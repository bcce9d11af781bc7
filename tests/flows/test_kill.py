"""Training under `dvc repro` is killed, at any moment and any part of it, and ends as if nothing had been.

`PICO_KILLS=20 python -m pytest -s tests/flows/test_kill.py` strikes twenty times, and says where each stroke fell.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from lab_project import REPOSITORY, clean_environment, run_python
from made_documents import made_up, write_documents

from pico.checkpoint import verify
from pico.cli.settings import compose, write_params
from pico.config import load_params
from pico.data.preparation.pipeline import prepare
from pico.files import sha256_file
from pico.train.checkpoints import exclusive
from pico.train.curve import Curve
from pico.train.run import pretrain
from pico.train.spec import run_spec

KILLS = int(os.environ.get("PICO_KILLS", "2"))
LONGEST = 300
"""Seconds until a stage must have got to work."""
SETTINGS = [
    "suite.models=[tiny]", "tokenizer.vocab_size=300", "packing.seq_len=16", "packing.rows_per_shard=200",
    "training.eval_every=50", "training.threads_per_worker=1",
    "checkpoints.every=40", "checkpoints.rescue_seconds=0.1", "~models.small",
]  # fmt: skip


def make_clone(tmp_path: Path, steps: int) -> Path:
    """A clone with tokens of its own, in which only training is left to do."""
    root = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", REPOSITORY, root], check=True)
    params, text = compose(root, "smoke", [*SETTINGS, f"training.steps={steps}"])
    write_params(root, text)
    documents = write_documents(
        tmp_path / "documents", {"a": ("prose", made_up(600, 1)), "b": ("verse", made_up(300, 2))}
    )
    prepare(documents, root / "data" / "tokens", tokenizer=params.tokenizer, cleaning=params.cleaning,
            packing=params.packing, vocab_size=params.model.vocab_size, runs=tmp_path / "runs")  # fmt: skip
    (root / "dvc.lock").unlink()
    return root


REPRO = ["-m", "dvc", "repro", "--single-item", "--no-run-cache", "pretrain@tiny"]


def trained(folder: Path) -> dict[str, str]:
    """sha256 by path of all that training leaves."""
    files = sorted(path for path in (folder / "checkpoints").rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def progress_of(root: Path) -> Path | None:
    """Returns the file of the run's events, once there is one."""
    return next(iter((root / "runs" / "pretrain").glob("*/progress.jsonl")), None)


def told(root: Path) -> list[dict]:
    """Returns the events of training so far; a kill may have torn a line."""
    events = []
    progress = progress_of(root)
    for line in progress.read_text().splitlines() if progress else []:
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


def victims(repro: subprocess.Popen, part: str) -> list[psutil.Process]:
    """The processes of one part of a running stage: the worker that trains, the stage, or all there is."""
    processes = [psutil.Process(repro.pid), *psutil.Process(repro.pid).children(recursive=True)]
    if part == "all":
        return processes
    found = []
    for process in processes:
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if (
            ("ray::pretrain_worker" in command)
            if part == "worker"
            else ("flows pretrain" in command and "-c" not in command)
        ):
            found.append(process)
    return found


def start(root: Path) -> subprocess.Popen:
    """`dvc repro`, in a session of its own, as in a terminal of its own."""
    return subprocess.Popen([sys.executable, *REPRO], cwd=root, env=clean_environment(), start_new_session=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip


def strike(root: Path, repro: subprocess.Popen, random: np.random.Generator) -> str | None:
    """Kills a part of a running `dvc repro` at a random moment. Says where that fell; None where it came too late."""
    before = len(told(root))
    deadline = time.monotonic() + LONGEST
    while repro.poll() is None and len(told(root)) == before:  # it starts, or goes on
        assert time.monotonic() < deadline, "training did not begin"
        time.sleep(0.005)
    time.sleep(random.uniform(0, 2))
    part = random.choice(["all", "stage", "worker"])
    if repro.poll() is not None or not (struck := victims(repro, part)):
        return None
    for process in struck:  # all of them stand still first, so that none sees another die
        process.suspend()
    where = moment(root)
    for process in struck:
        process.kill()
    if part != "worker":  # where the worker dies, the stage begins another
        repro.wait(LONGEST)
        wait_until_nobody_trains(root)
    return f"{part}, {where}"


def wait_until_nobody_trains(root: Path) -> None:
    """Returns when the worker of a stage that was killed has gone too, so that the next stroke falls on a new one."""
    if progress := progress_of(root):
        with exclusive(progress.parent):
            pass


def moment(root: Path) -> str:
    """Tells what training was at, from the traces that it leaves."""
    progress = progress_of(root)
    if progress and any(progress.parent.glob("*/**/.step_*.partial")):
        return "in a save"
    events = told(root)
    if events and "capturing" in events[-1]:
        return "in a capture"
    return "in a step" if events and "step" in events[-1] else "at the start"


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_killed_training_ends_with_the_bytes_of_the_undisturbed_one(tmp_path: Path) -> None:
    clone = make_clone(tmp_path, 1000 + 200 * KILLS)
    spec = run_spec(load_params(clone / "params.yaml"), "tiny")
    undisturbed = pretrain(spec, clone / "data" / "tokens", runs=clone.parent / "undisturbed")
    expected, curve = trained(undisturbed / "model"), Curve(undisturbed / "curve.jsonl").read()
    random, fell, whole = np.random.default_rng(0), Counter[str](), 0
    while sum(fell.values()) < KILLS or not whole:
        for part in ("dvc.lock", "data/models", "runs"):
            path = clone / part
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        repro = start(clone)
        while sum(fell.values()) < KILLS and not (clone / "dvc.lock").exists():
            if where := strike(clone, repro, random):
                fell[where] += 1
                print(f"kill {sum(fell.values())}: {where}; training had said {str(told(clone)[-1])[:60]}", flush=True)
            if repro.poll() is not None and not (clone / "dvc.lock").exists():
                repro = start(clone)
        assert repro.wait(LONGEST) == 0
        assert trained(clone / "data" / "models" / "smoke" / "tiny") == expected
        assert Curve(progress_of(clone).parent / "curve.jsonl").read() == curve
        whole += 1
    print(f"{dict(fell)}; {whole} runs, each with the bytes of the undisturbed one")


@pytest.mark.slow
def test_a_stage_that_is_asked_to_end_saves_and_the_next_goes_on(tmp_path: Path) -> None:
    clone = make_clone(tmp_path, 100_000)
    stage = subprocess.Popen([sys.executable, "-m", "flows.pretrain", "--model", "tiny"], cwd=clone,
                             env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + LONGEST
    while not any("step" in event for event in told(clone)):
        assert stage.poll() is None
        assert time.monotonic() < deadline, "training did not begin"
        time.sleep(0.05)
    stage.send_signal(signal.SIGTERM)
    assert stage.wait(LONGEST) == 128 + signal.SIGTERM
    work = progress_of(clone).parent
    done = len(Curve(work / "curve.jsonl").read())
    newest = max(folder.name for folder in work.glob("*/**/step_*"))
    assert verify(next(work.glob(f"*/**/{newest}"))).step == done, "no update that was taken is lost"


@pytest.mark.slow
def test_a_model_that_dvc_was_too_late_to_record_is_not_trained_again(tmp_path: Path) -> None:
    clone = make_clone(tmp_path, 100)

    def trained_by(*command: str) -> bool:
        before = len(told(clone))
        done = run_python(clone, *command)
        assert done.returncode == 0, done.stderr
        return len(told(clone)) > before

    assert trained_by("-m", "flows", "pretrain", "--model", "tiny")  # as if DVC had been killed right after it
    assert not (clone / "dvc.lock").exists()
    first = trained(clone / "data" / "models" / "smoke" / "tiny")
    assert not trained_by(*REPRO)
    assert (clone / "dvc.lock").exists()
    assert trained_by(*REPRO, "--force"), "who asks for it to be made again is heard"
    assert trained(clone / "data" / "models" / "smoke" / "tiny") == first
    (clone / "dvc.lock").unlink()
    damaged = next((clone / "data" / "models" / "smoke" / "tiny").rglob("model.safetensors"))
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert trained_by(*REPRO), "a damaged one is not taken for the finished one"
    assert trained(clone / "data" / "models" / "smoke" / "tiny") == first
