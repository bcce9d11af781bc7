"""The lab of a checkout: one Prefect server and one Ray head that stay up between stages, both on loopback."""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.environment import (
    LAB,
    SWITCHES,
    answers_http,
    is_open,
    live_prefect,
    live_ray,
    ray_token,
    read_record,
    same_process,
)
from flows.prefect_server import server_command, server_environment
from flows.prefect_session import START_SECONDS, any_free_port
from flows.ray_session import OBJECT_STORE_BYTES, ray_folder
from pico.errors import PicoError
from pico.files import write_json

STOP_SECONDS = 15
"""How long a service may take to end before it is killed."""
FIRST_PORTS = {"prefect": 4200, "ray": 6379, "dashboard": 8265}
"""Where the search for a free port begins when none is asked for."""


@dataclass(frozen=True)
class Ports:
    """The ports asked for; None means the first free one from the usual one on."""

    prefect: int | None = None
    ray: int | None = None
    dashboard: int | None = None


ANY_PORTS = Ports()


def up(root: Path, ports: Ports = ANY_PORTS) -> dict[str, Any]:
    """Starts what of the lab is not up, side by side, and gives its record; what is up already stays as it is.

    Raises PicoError where a port that was asked for is taken, or a service ends or stays silent; then everything that
    this call started is stopped again.
    """
    root = _project(root)
    with _locked(root):
        record = read_record(root) or {}
        missing = [name for name, live in (("prefect", live_prefect), ("ray", live_ray)) if not live(record)]
        if not missing:
            return record
        for name in missing:
            _stop(root, record, name)  # a stale record, or one that hangs
        chosen = _choose_ports(ports, missing)
        started: dict[str, subprocess.Popen] = {}
        try:
            for name in missing:
                process, entry = (_start_prefect if name == "prefect" else _start_ray)(root, chosen)
                started[name] = process
                record[name] = entry
                write_json(root / LAB / "lab.json", record)  # at once, so that a half-started lab can be stopped
            _await_health(root, record, started)
        except BaseException:
            for name in started:
                _stop(root, record, name)
            raise
    return record


def down(root: Path) -> list[str]:
    """Stops what `up` started in this checkout and nothing else; gives the names of what was running."""
    root = _project(root)
    with _locked(root):
        record = read_record(root) or {}
        return [name for name in ("prefect", "ray") if _stop(root, record, name)]


def status(root: Path) -> dict[str, str | None]:
    """The addresses of what is up and answers: `prefect`, `ray`, `dashboard`; None for what is not."""
    record = read_record(_project(root)) or {}
    api, ray = live_prefect(record), live_ray(record)
    return {
        "prefect": api and api.removesuffix("/api"),
        "ray": ray,
        "dashboard": ray and f"http://127.0.0.1:{record['ray']['dashboard']}",
    }


def _project(root: Path) -> Path:
    root = root.resolve()
    if not (root / "params.yaml").is_file():
        raise PicoError(
            "this folder is no Pico project: it has no params.yaml", where=str(root), mend="cd to your clone"
        )
    return root


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One `up` or `down` at a time in a checkout; the lock is freed by the system if the process dies."""
    folder = root / LAB
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "w")  # noqa: SIM115 - held until the end of the with
    except OSError as error:
        raise PicoError(f"cannot write {folder}: {error.strerror}", mend="make it writable") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _choose_ports(ports: Ports, missing: list[str]) -> dict[str, int]:
    wanted = {"prefect": ["prefect"], "ray": ["ray", "dashboard"]}
    chosen: dict[str, int] = {}
    for name in (port for service in missing for port in wanted[service]):
        asked = getattr(ports, name)
        if asked is not None and not is_free(asked):
            raise PicoError(
                f"port {asked} is in use{_holder(asked)}",
                where=f"--{name}-port {asked}",
                mend=f"stop that program, or name another: pico up --{name}-port N (without it, a free one is found)",
            )
        chosen[name] = asked or _free_port(FIRST_PORTS[name], set(chosen.values()))
    return chosen


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
    return True


def _free_port(first: int, taken: set[int]) -> int:
    for port in range(first, first + 200):
        if port not in taken and is_free(port):
            return port
    raise PicoError(
        f"no free port between {first} and {first + 199}", mend="stop some servers, or name one: pico up --help"
    )


def _holder(port: int) -> str:
    """Which program listens on `port`, as far as this user may know."""
    import psutil

    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        pass
    return ""


def _environment(**more: str) -> dict[str, str]:
    """What the services are given: the switches and this lab's places, and no address of another Prefect or Ray."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("PREFECT_API_URL", "RAY_ADDRESS")}
    return {**SWITCHES, **inherited, **more}


def _start_prefect(root: Path, ports: dict[str, int]) -> tuple[subprocess.Popen, dict[str, Any]]:
    port = ports["prefect"]
    home = root / LAB / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    for old in home.glob("ui-*"):
        shutil.rmtree(old, ignore_errors=True)
    environment = _environment(**server_environment(home, port))
    process, entry = _spawn(root, "prefect", server_command(port), environment)
    return process, {**entry, "port": port}


def _start_ray(root: Path, ports: dict[str, int]) -> tuple[subprocess.Popen, dict[str, Any]]:
    folder = ray_folder(root, "lab")
    (folder / "ray_current_cluster").unlink(missing_ok=True)  # Ray writes it once it is ready
    environment = _environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(ray_token(root)))
    environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # for all its name: Ray then listens on loopback alone
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address", "127.0.0.1", "--port", str(ports["ray"])),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(ports["dashboard"])),
        # Ports that Ray would take for itself, and on which the Ray of another clone would run into this one.
        *("--ray-client-server-port", str(any_free_port()), "--min-worker-port", "0", "--max-worker-port", "0"),
        *("--dashboard-agent-listen-port", str(any_free_port()), "--no-monitor"),  # one machine: nothing to autoscale
        *("--object-store-memory", str(OBJECT_STORE_BYTES), "--temp-dir", str(folder)),
    ]
    process, entry = _spawn(root, "ray", command, environment)
    return process, {**entry, "port": ports["ray"], "dashboard": ports["dashboard"], "folder": str(folder)}


def _spawn(
    root: Path, name: str, command: list[str], environment: dict[str, str]
) -> tuple[subprocess.Popen, dict[str, Any]]:
    """Starts a service in a session of its own, so that Ctrl-C in a terminal does not reach it; logs to runs/lab."""
    import psutil

    with open(root / LAB / f"{name}.log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    return process, {"pid": process.pid, "started": psutil.Process(process.pid).create_time()}


def _await_health(root: Path, record: dict[str, Any], started: dict[str, subprocess.Popen]) -> None:
    """Waits until all that was started answers. Raises PicoError with the log's end if one ends or stays silent."""
    deadline = time.monotonic() + START_SECONDS
    waiting = dict(started)
    while waiting:
        for name, process in list(waiting.items()):
            if _is_healthy(name, record[name]):
                del waiting[name]
            elif process.poll() is not None:
                raise _failure(root, name, f"ended with status {process.returncode} while starting")
            elif time.monotonic() > deadline:
                raise _failure(root, name, f"did not answer within {START_SECONDS} seconds")
        time.sleep(0.1)


def _is_healthy(name: str, entry: dict[str, Any]) -> bool:
    if name == "prefect":
        return answers_http(entry["port"], "/api/health")
    return Path(entry["folder"], "ray_current_cluster").exists() and is_open(entry["port"])


def _failure(root: Path, name: str, what: str) -> PicoError:
    log = root / LAB / f"{name}.log"
    last = log.read_text(errors="replace").strip().splitlines()[-8:]
    return PicoError(
        "\n".join([f"{name} {what}; its log ends:", *(f"    {line}" for line in last)]),
        where=str(log),
        mend="mend what it says, then: pico up",
    )


def _stop(root: Path, record: dict[str, Any], name: str) -> bool:
    """Ends a recorded service with all its processes and forgets it; gives whether it was running."""
    import psutil

    entry = record.pop(name, None)
    if entry is None:
        return False
    was_running = same_process(entry)
    processes = []
    if was_running:
        main = psutil.Process(entry["pid"])
        processes = [main, *main.children(recursive=True)]
        _signal([main], signal.SIGTERM)  # Ray's and Prefect's main processes end their own
        psutil.wait_procs([main], timeout=STOP_SECONDS)
    processes += _left_in(entry.get("folder"))  # Ray's, whose parent may have been killed
    _signal(processes, signal.SIGKILL)
    psutil.wait_procs(processes, timeout=STOP_SECONDS)
    if folder := entry.get("folder"):
        shutil.rmtree(folder, ignore_errors=True)
    path = root / LAB / "lab.json"
    if record:
        write_json(path, record)
    else:
        path.unlink(missing_ok=True)
    return was_running


def _left_in(folder: str | None) -> list:
    """This user's processes whose command line names the lab's own Ray folder."""
    import psutil

    if not folder:
        return []
    found = []
    for process in psutil.process_iter(["uids", "cmdline"]):
        uids, words = process.info["uids"], process.info["cmdline"] or []
        if uids and uids.real == os.getuid() and any(folder in word for word in words) and process.pid != os.getpid():
            found.append(process)
    return found


def _signal(processes: list, number: int) -> None:
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            process.send_signal(number)
