"""The fork server: a stage that runs in a fork is, to whoever started it, what a process of its own would have been."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_project import REPOSITORY, clean_environment, make_project

from flows.lab.environment import live_forkserver

pytestmark = pytest.mark.slow

PROBE = """
import json, os, sys
loaded = sorted({"torch", "prefect"} & sys.modules.keys())  # before anything here imports them
from flows.lab.environment import LAB
print(json.dumps({"argv": sys.argv[1:], "folder": os.getcwd(), "loaded": loaded, "stdin": sys.stdin.read(),
                  "words": os.environ.get("DVC_WORDS"), "main": sys.modules["__main__"].__file__}), flush=True)
import atexit, signal, time
from pathlib import Path
kind = os.environ.get("DVC_PROBE")
atexit.register(print, "exit functions ran")
if kind == "three":
    sys.exit(3)
if kind == "words":
    sys.exit("a last word")
if kind == "bug":
    raise ValueError("a bug")
if kind == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if kind == "wait":
    def save(number, frame):
        Path("saved").write_text(str(number))
        sys.exit(100 + number)
    signal.signal(signal.SIGINT, save)
    signal.signal(signal.SIGTERM, save)
    Path("waiting").touch()
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkout whose stage `validate` is the probe above, with a fork server that is up."""
    root = make_project(tmp_path_factory.mktemp("fork") / "project")
    for package in ("flows", "pico"):
        shutil.copytree(REPOSITORY / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "flows" / "validate.py").write_text(PROBE)
    lab(root, "up")
    yield root
    lab(root, "down")


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in clean_environment().items() if not name.startswith(("PYTHON", "PYTEST"))}
    return {**kept, **more}


def lab(root: Path, command: str) -> None:
    subprocess.run([sys.executable, "-m", "pico.cli", command], cwd=root, env=environment(), check=True)


def start(root: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows", "validate", *arguments], cwd=root, env=environment(**more), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def run(root: Path, *arguments: str, **more: str) -> tuple[int, dict[str, Any], str, str]:
    """Exit status, what the probe saw, the rest of its output, and stderr."""
    process = start(root, *arguments, **more)
    output, errors = process.communicate("typed", timeout=200)
    seen, _, rest = output.partition("\n")
    return process.returncode, json.loads(seen), rest, errors


def test_it_has_the_libraries_and_the_callers_terminal_folder_and_environment(project: Path) -> None:
    status, seen, rest, errors = run(project, "--model", "tiny", DVC_WORDS="two words")
    assert (status, rest, errors) == (0, "exit functions ran\n", "")
    assert seen == {
        "argv": ["--model", "tiny"],
        "folder": str(project),
        "loaded": ["prefect", "torch"],
        "stdin": "typed",
        "words": "two words",
        "main": str(project / "flows" / "validate.py"),
    }


def test_exit_statuses_are_those_of_a_process(project: Path) -> None:
    assert run(project, DVC_PROBE="three")[0] == 3
    status, _, rest, errors = run(project, DVC_PROBE="words")
    assert (status, rest, errors) == (1, "exit functions ran\n", "a last word\n")
    status, _, _, errors = run(project, DVC_PROBE="bug")
    assert status == 1
    assert errors.endswith("ValueError: a bug\n")
    assert run(project, DVC_PROBE="die")[0] == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_stage_which_decides(project: Path, number: signal.Signals) -> None:
    process = start_waiting(project)
    process.send_signal(number)
    assert process.wait(timeout=20) == 100 + number
    assert (project / "saved").read_text() == str(number.value)


def test_a_stage_whose_caller_is_killed_saves_and_leaves(project: Path) -> None:
    process = start_waiting(project)
    process.kill()
    deadline = time.monotonic() + 20
    while not (project / "saved").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (project / "saved").read_text() == str(signal.SIGTERM.value)


def start_waiting(project: Path) -> subprocess.Popen[str]:
    for name in ("waiting", "saved"):
        (project / name).unlink(missing_ok=True)
    process = start(project, DVC_PROBE="wait")
    assert process.stdin
    process.stdin.close()
    while not (project / "waiting").exists():
        assert process.poll() is None
        time.sleep(0.05)
    return process


def test_the_code_on_disk_is_what_runs(project: Path) -> None:
    stage = project / "flows" / "validate.py"
    stage.write_text(PROBE.replace('"a last word"', '"an edited word"'))
    try:
        assert run(project, DVC_PROBE="words")[3] == "an edited word\n"
    finally:
        stage.write_text(PROBE)


def test_with_another_environment_it_runs_by_itself_and_says_so(project: Path) -> None:
    status, seen, _, errors = run(project, OMP_NUM_THREADS="7")
    assert status == 0
    assert seen["loaded"] == []
    assert "OMP_NUM_THREADS" in errors
    assert "pico down, then pico up" in errors


def test_several_stages_at_once_are_kept_apart(project: Path) -> None:
    processes = [start(project, DVC_WORDS=str(number), DVC_PROBE="three") for number in range(4)]
    for number, process in enumerate(processes):
        output, _ = process.communicate("", timeout=60)
        assert process.returncode == 3
        assert json.loads(output.splitlines()[0])["words"] == str(number)


def test_without_the_server_stages_run_by_themselves(project: Path) -> None:
    record = json.loads((project / "runs" / "lab" / "lab.json").read_text())
    os.kill(record["forkserver"]["pid"], signal.SIGKILL)
    while live_forkserver(record):
        time.sleep(0.05)
    status, seen, _, errors = run(project)
    assert (status, seen["loaded"], errors) == (0, [], "")


def test_what_is_no_stage_is_refused(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows", "nonsense"], cwd=project, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "pretrain" in done.stderr
