"""The process of a stage: its exit statuses and messages, and its flow run in Prefect."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from lab_project import clean_environment, run_python

from flows.stage import domain_error
from pico.errors import PicoError

FLOW = '''
"""A stage for tests."""
import flows  # the environment, before Prefect; stages get it because they lie in the package
import time
from prefect import task
from flows.stage import run
from pico.errors import PicoError

KIND = "{kind}"

@task
def work():
    if KIND == "domain":
        raise PicoError("row 3 is torn", where="data/x", mend="dvc repro")
    if KIND == "bug":
        raise ValueError("a bug")
    if KIND == "wait":
        print("waiting", flush=True)
        time.sleep(60)

def body(stage):
    stage.logger.info("at work on %s", stage.model)
    work()
    stage.table("test_Table", [{{"a": 1}}], "a table")
    stage.link("test-link", "params.yaml", "a file")
    with stage.progress(2, "pages") as bar:
        bar.fraction(0.5)
        bar.advance()
    if KIND == "on_ray":
        import ray
        with stage.ray():
            print("RAY", ray.get_runtime_context().gcs_address, flush=True)

run("{kind}", body, per_model=KIND == "ok")
'''

Api = Callable[[str, dict[str, Any]], Any]


def write_flow(root: Path, kind: str) -> str:
    (root / f"{kind}.py").write_text(FLOW.format(kind=kind))
    return f"{kind}.py"


def start_waiting(root: Path) -> subprocess.Popen[bytes]:
    """Starts a flow that waits, in a session of its own, and returns once it does."""
    process = subprocess.Popen(
        [sys.executable, write_flow(root, "wait")], cwd=root, env=clean_environment(), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"waiting\n"
    return process


def last_run(api: Api, name: str) -> dict[str, Any]:
    runs = api("flow_runs/filter", {"flows": {"name": {"any_": [name]}}, "sort": "START_TIME_DESC", "limit": 1})
    return runs[0]


@pytest.mark.parametrize("wrap", ["cause", "attribute"])
def test_a_domain_error_is_found_in_what_wraps_it(wrap: str) -> None:
    inner, outer = PicoError("inner"), RuntimeError("outer")
    if wrap == "cause":
        outer.__cause__ = inner
    else:
        outer.cause = inner  # type: ignore[attr-defined]
    assert domain_error(outer) is inner
    assert domain_error(ValueError("x")) is None


def test_wrong_arguments_end_with_2_before_prefect_starts(project: Path) -> None:
    for arguments in (["--model", "tiny", "--nonsense"], []):
        result = run_python(project, write_flow(project, "ok"), *arguments)
        assert result.returncode == 2
        assert "usage: python -m flows ok" in result.stderr


def test_an_unknown_model_is_refused_by_name(project: Path) -> None:
    result = run_python(project, write_flow(project, "ok"), "--model", "huge")
    assert result.returncode == 1
    assert result.stderr.startswith("ok: model 'huge' is not in the suite")
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_stage_is_seen_with_name_tags_and_artifacts(lab: Path, prefect_api: Api) -> None:
    result = run_python(lab, write_flow(lab, "ok"), "--model", "tiny")
    assert result.returncode == 0, result.stderr
    run = last_run(prefect_api, "ok")
    assert (run["name"], run["state_type"]) == ("ok-tiny", "COMPLETED")
    assert {"model:tiny", "scale:laptop"} <= set(run["tags"])
    artifacts = prefect_api("artifacts/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    found = {artifact["key"]: artifact["data"] for artifact in artifacts}
    assert found.keys() == {"test-table", "test-link", "ok-tiny-progress"}
    assert found["ok-tiny-progress"] == 100
    assert "ok tiny: 2/2 pages" in result.stderr


@pytest.mark.slow
def test_a_domain_error_is_short_on_the_terminal_and_whole_in_prefect(lab: Path, prefect_api: Api) -> None:
    result = run_python(lab, write_flow(lab, "domain"))
    assert result.returncode == 1
    # On a busy machine Prefect adds that it is still sending events.
    assert "\ndomain: row 3 is torn\n  where: data/x\n  mend:  dvc repro\n" in result.stderr
    assert "Traceback" not in result.stderr
    run = last_run(prefect_api, "domain")
    assert run["state_type"] == "FAILED"
    assert "row 3 is torn" in run["state"]["message"]


@pytest.mark.slow
def test_a_bug_shows_its_traceback_once(lab: Path, prefect_api: Api) -> None:
    result = run_python(lab, write_flow(lab, "bug"))
    assert result.returncode == 1
    assert result.stderr.count("Traceback") == 1
    assert 'raise ValueError("a bug")' in result.stderr
    assert last_run(prefect_api, "bug")["state_type"] == "FAILED"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_in_order(lab: Path, prefect_api: Api, number: int, status: int) -> None:
    process = start_waiting(lab)
    os.killpg(process.pid, number)
    errors = process.communicate(timeout=30)[1].decode()
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert last_run(prefect_api, "wait")["state_type"] == "CRASHED"


def servers(root: Path) -> list[psutil.Process]:
    """The Prefect servers that run in a project's folder."""
    return [
        process for process in psutil.process_iter(["cmdline", "cwd"])
        if "flows.lab.prefect_server" in (process.info["cmdline"] or []) and process.info["cwd"] == str(root)
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_without_a_lab_a_stage_ends_promptly_and_leaves_no_server(project: Path, number: int, status: int) -> None:
    process = start_waiting(project)
    begin = time.monotonic()
    assert len(servers(project)) == 1
    os.killpg(process.pid, number)
    errors = process.communicate(timeout=60)[1].decode()
    assert process.returncode == status, errors
    assert time.monotonic() - begin < 20
    deadline = time.monotonic() + 20
    while servers(project) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not servers(project)


@pytest.mark.slow
def test_a_stage_uses_the_ray_of_the_lab(lab: Path) -> None:
    from flows.lab.environment import read_record

    record = read_record(lab)
    result = run_python(lab, write_flow(lab, "on_ray"))
    assert f"RAY 127.0.0.1:{record['ray']['port']}" in result.stdout, result.stderr
