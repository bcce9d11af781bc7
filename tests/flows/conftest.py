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
def prefect_api(lab: Path) -> Callable[[str, dict[str, Any]], Any]:
    """Asks the lab's Prefect: `prefect_api("flow_runs/filter", {...})`."""
    import httpx

    from flows.environment import live_prefect, read_record

    record = read_record(lab)
    assert record is not None
    url = live_prefect(record)

    def ask(path: str, body: dict[str, Any]) -> Any:
        answer = httpx.post(f"{url}/{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    return ask
