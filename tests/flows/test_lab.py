"""`pico up` and `pico down`: idempotent, on loopback, side by side with other labs, and never in anybody's way."""

import json
import os
import signal
import socket
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from lab_project import make_project, run_python

from flows.lab.environment import LAB, is_free, read_record
from flows.lab.ray_session import ray_folder
from flows.lab.services import down, status, up
from pico.errors import PicoError


def test_a_port_in_use_is_refused_by_number_and_nothing_is_started(project: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PicoError, match=rf"(?s)port {port} is in use.*--prefect-port"):
            up(project, {"prefect": port})
        assert not is_free(port)
    assert read_record(project) == {}


def test_a_stale_record_is_not_taken_for_a_lab(project: Path) -> None:
    path = project / LAB / "lab.json"
    path.parent.mkdir(parents=True)
    entry = {"pid": os.getpid(), "started": 1.0, "port": 4200}
    path.write_text(json.dumps({"prefect": entry, "ray": {**entry, "dashboard": 8265}}))
    assert status(project) == {"prefect": None, "ray": None, "dashboard": None, "forkserver": None}
    assert down(project) == [], "this test's own process must survive"
    assert not path.exists()


def test_outside_a_project_nothing_is_started(tmp_path: Path) -> None:
    with pytest.raises(PicoError, match="no Pico project"):
        up(tmp_path)


def test_ray_folders_are_private_short_and_differ_between_checkouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = ray_folder(tmp_path / "a", "lab"), ray_folder(tmp_path / "b", "lab")
    assert one != other
    assert one.stat().st_mode & 0o077 == 0
    one.rmdir()
    other.rmdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / ("deep" * 10)))
    with pytest.raises(PicoError, match="TMPDIR"):
        ray_folder(tmp_path, "lab")


@pytest.mark.slow
def test_a_ray_of_its_own_goes_with_the_process_even_when_killed(project: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from flows.lab.ray_session import ray_session
with ray_session(Path.cwd()):
    import ray
    print(ray.get(ray.put(1)), ray.get_runtime_context().gcs_address.split(":")[0])
    if sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
"""
    sample = ray_folder(project, "0")
    sample.rmdir()
    pattern = f"{sample.name.split('-')[0]}-[1-9]*"
    killed = run_python(project, "-c", script, "kill")
    left = list(sample.parent.glob(pattern))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(left) == 1, "its folder, until the next one sweeps it up"
    done = run_python(project, "-c", script, "leave")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "127.0.0.1"
    assert not list(left[0].parent.glob(pattern))
    deadline = time.monotonic() + 30
    while (found := naming(str(left[0]))) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not found


def naming(text: str) -> list[str]:
    """The command lines of the processes that name `text`."""
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if text in line]


@pytest.mark.slow
def test_up_again_changes_nothing(lab: Path) -> None:
    before = read_record(lab)
    begin = time.monotonic()
    assert up(lab) == before
    assert time.monotonic() - begin < 2
    assert run_python(lab, "-m", "pico.cli", "status", "--quiet").returncode == 0


@pytest.mark.slow
def test_the_ui_knows_its_server(lab: Path) -> None:
    record = read_record(lab)
    port = record["prefect"]["port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/ui-settings") as answer:
        assert json.load(answer)["api_url"] == f"http://127.0.0.1:{port}/api"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
        assert b"<html" in answer.read()


@pytest.mark.slow
def test_everything_listens_on_loopback(lab: Path) -> None:
    record = read_record(lab)
    addresses = set()
    for service in ("prefect", "ray"):
        main = psutil.Process(record[service]["pid"])
        for process in (main, *main.children(recursive=True)):
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    addresses.add(connection.laddr.ip.removeprefix("::ffff:"))
    assert addresses == {"127.0.0.1"}


@pytest.mark.slow
def test_a_second_checkout_has_a_lab_of_its_own_and_outlives_a_kill(lab: Path, tmp_path: Path) -> None:
    other = make_project(tmp_path / "other")
    started = run_python(other, "-m", "pico.cli", "up")
    assert started.returncode == 0, started.stderr
    first, second = read_record(lab), read_record(other)
    assert first["prefect"]["port"] != second["prefect"]["port"]
    assert first["ray"]["port"] != second["ray"]["port"]

    os.kill(second["ray"]["pid"], signal.SIGKILL)
    while status(other)["ray"] is not None:
        time.sleep(0.1)
    again = up(other)
    assert again["prefect"] == second["prefect"], "what is up stays as it is"
    assert again["ray"]["pid"] != second["ray"]["pid"]

    assert down(other) == ["prefect", "ray", "forkserver"]
    assert not Path(second["ray"]["folder"]).exists()
    assert not naming(second["ray"]["folder"])
    assert None not in status(lab).values(), "the first lab is untouched"
