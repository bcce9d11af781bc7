"""The off switches, places and records that every process of the project starts from."""

import os
import stat
from pathlib import Path

import psutil
import pytest

from flows.lab import environment


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment of its own, so that the test run's is left alone."""
    own: dict[str, str] = {"HOME": os.environ.get("HOME", "")}
    monkeypatch.setattr(os, "environ", own)
    return own


def test_telemetry_and_caches_are_off_and_prefect_stays_in_the_project(
    project: Path, variables: dict[str, str]
) -> None:
    environment.prepare(project)
    assert variables["DO_NOT_TRACK"] == "1"
    assert variables["RAY_USAGE_STATS_ENABLED"] == "0"
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["PREFECT_TASKS_DISABLE_CACHING"] == "true"
    assert variables["PREFECT_HOME"] == str(project / "runs/lab/prefect")
    assert variables["RAY_AUTH_MODE"] == "token"
    assert "PREFECT_API_URL" not in variables


def test_what_the_user_has_set_stands(project: Path, variables: dict[str, str]) -> None:
    theirs = {"PREFECT_API_URL": "http://10.0.0.1/api", "RAY_ADDRESS": "10.0.0.1:6379", "HF_HUB_OFFLINE": "0"}
    variables.update(theirs)
    environment.prepare(project)
    assert {name: variables[name] for name in theirs} == theirs
    assert "RAY_AUTH_MODE" not in variables, "a cluster's own authentication must not be overridden"


def test_a_folder_that_is_no_project_is_left_untouched(tmp_path: Path, variables: dict[str, str]) -> None:
    environment.prepare(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_ray_token_is_private_and_stays_the_same(tmp_path: Path) -> None:
    path = environment.ray_token(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_text()) == 64
    assert environment.ray_token(tmp_path).read_text() == path.read_text()


def test_a_record_of_another_process_with_the_same_number_is_stale() -> None:
    started = psutil.Process().create_time()
    assert environment.same_process({"pid": os.getpid(), "started": started})
    assert not environment.same_process({"pid": os.getpid(), "started": started - 100})


def test_a_torn_record_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / environment.LAB / "lab.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"prefect": {"pi')
    assert environment.read_record(tmp_path) == {}
