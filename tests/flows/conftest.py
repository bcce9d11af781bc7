"""A project of its own with a lab that is up, for the tests of the flows."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_project import make_project, run_python


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root of a project whose lab is up; started and stopped by the command line."""
    root = make_project(tmp_path_factory.mktemp("lab") / "project")
    started = run_python(root, "-m", "pico.cli", "up")
    assert started.returncode == 0, started.stderr
    yield root
    stopped = run_python(root, "-m", "pico.cli", "down")
    assert stopped.stdout == "stopped: prefect, ray, forkserver\n", stopped.stderr


@pytest.fixture(scope="session")
def prefect_url(lab: Path) -> str:
    """The address of the lab's Prefect."""
    from flows.lab.environment import live_prefect, read_record

    url = live_prefect(read_record(lab))
    assert url is not None
    return url


@pytest.fixture
def server(prefect_url: str) -> Iterator[None]:
    """Flows that run in this process are seen by the lab's Prefect, and wait for it no longer when it has gone."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_url}):
        yield
        APILogWorker.drain_all()
        EventsWorker.drain_all()


@pytest.fixture(scope="session")
def prefect_api(prefect_url: str) -> Callable[[str, dict[str, Any]], Any]:
    """Asks the lab's Prefect: `prefect_api("flow_runs/filter", {...})`."""
    import httpx

    def ask(path: str, body: dict[str, Any]) -> Any:
        answer = httpx.post(f"{prefect_url}/{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    return ask
