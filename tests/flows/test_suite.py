"""The launcher gives the dvc.lock of `dvc repro`, runs what it can, and says what it could not."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab_project import clean_environment, run_python
from ruamel.yaml import YAML

from flows.suite import Running, lock_order, order_lock

GRAPH = """
stages:
  first:
    cmd: mkdir -p out && cp params.yaml out/first
    params: [seed]
    outs: [out/first]
  middle:
    matrix:
      n: [slow, quick]
    cmd: python -c "import time; time.sleep(3 * ('${item.n}' == 'slow'))" && cp out/first out/${item.n}
    deps: [out/first]
    outs:
      - out/${item.n}
  last:
    cmd: cat out/slow out/quick > out/last
    deps: [out/slow, out/quick]
    outs: [out/last]
"""


@pytest.fixture
def graph(lab: Path) -> Path:
    """A DVC repository whose stages take longer the earlier they are in the plan; it shares the lab's server."""
    root = lab.parent / "graph"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    (root / "runs").symlink_to(lab / "runs")
    shutil.copy(lab / "params.yaml", root)
    (root / "dvc.yaml").write_text(GRAPH)
    dvc(root, "init", "--no-scm", "-q")
    return root


def dvc(root: Path, *arguments: str) -> None:
    done = run_python(root, "-m", "dvc", *arguments)
    assert done.returncode == 0, done.stderr


def repro(root: Path) -> bytes:
    """The dvc.lock that `dvc repro` leaves."""
    dvc(root, "repro", "-q")
    return (root / "dvc.lock").read_bytes()


def test_entries_stay_where_they_were_and_new_ones_follow_in_plan_order(tmp_path: Path) -> None:
    path = tmp_path / "dvc.lock"
    entries = {name: {"cmd": name} for name in ("old", "c", "gone", "b", "a")}
    with path.open("w") as file:
        YAML().dump({"schema": "2.0", "stages": entries}, file)
    order_lock(["gone", "old"], {"a": set(), "old": set(), "b": set(), "c": set()}, path)
    assert lock_order(path) == ["gone", "old", "a", "b", "c"]


def test_a_stage_whose_dvc_has_left_is_interrupted_too() -> None:
    """As when Ctrl-C comes between DVC's start of a command and its waiting for it."""
    running = Running(dict(os.environ))
    left = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"]
    process = running.start([sys.executable, "-c", f"import subprocess; subprocess.Popen({left})"])
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    process.wait(10)

    def read() -> None:
        assert process.stdout is not None
        process.stdout.read()
        running.ended(process)

    reader = threading.Thread(target=read)
    reader.start()
    running.stop()
    reader.join(10)
    assert not reader.is_alive()


@pytest.mark.slow
def test_dvc_lock_equals_that_of_repro(graph: Path) -> None:
    result = run_python(graph, "-m", "flows.suite", "--jobs", "2")
    assert result.returncode == 0, result.stderr
    parallel = (graph / "dvc.lock").read_bytes()
    assert parallel == repro(graph), "repro has nothing to add"
    (graph / "dvc.lock").unlink()
    shutil.rmtree(graph / "out")
    shutil.rmtree(graph / ".dvc" / "cache")
    assert parallel == repro(graph), "nor does it differ from the start"
    assert "quick" in (lab_logs := "".join(sorted(path.name for path in (graph / "runs/suite").iterdir()))), lab_logs


@pytest.mark.slow
def test_a_failed_stage_holds_back_its_dependents_only(
    graph: Path, prefect_api: Callable[[str, dict[str, Any]], Any]
) -> None:
    text = GRAPH.replace("cp out/first out/${item.n}", "test ${item.n} = slow && cp out/first out/${item.n}")
    (graph / "dvc.yaml").write_text(text)
    result = run_python(graph, "-m", "flows.suite")
    assert result.returncode == 1
    assert "1 of 4 stages failed: middle@quick" in result.stderr
    assert "not run, because they depend on it: last" in result.stderr
    assert lock_order(graph / "dvc.lock") == ["first", "middle@slow"], "the other one finished"
    tables = prefect_api("artifacts/filter", {"artifacts": {"key": {"any_": ["suite"]}}, "sort": "CREATED_DESC"})
    assert '"failed"' in tables[0]["data"]


@pytest.mark.slow
def test_ctrl_c_reaches_the_stages(graph: Path) -> None:
    (graph / "dvc.yaml").write_text(GRAPH.replace("3 *", "600 *"))
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.suite"],
        cwd=graph,
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "Running stage 'middle@slow'" in line:
            break
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130, errors
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "600 *" not in left
    assert lock_order(graph / "dvc.lock") == ["first", "middle@quick"] or lock_order(graph / "dvc.lock") == ["first"]
