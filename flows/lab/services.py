"""The lab of a clone: a Prefect server, a Ray head and a fork server that stay up between stages, on loopback."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from flows.lab.environment import (
    LAB,
    RAY_READY,
    SWITCHES,
    any_free_port,
    is_free,
    live_forkserver,
    live_prefect,
    live_ray,
    ray_token,
    read_record,
    same_process,
)
from flows.lab.prefect_server import START_SECONDS, server_command, server_environment
from flows.lab.ray_session import OBJECT_STORE_BYTES, ray_folder
from pico.errors import PicoError
from pico.files import write_json

STOP_SECONDS = 15
"""The time that a service may take to end before it is killed."""
Record = dict[str, Any]
"""Process, ports and places of a service, or of all of them by name."""
LIVE = {"prefect": live_prefect, "ray": live_ray, "forkserver": live_forkserver}
"""The services in the order in which they start: each with the function that returns its address if it is up."""
FIRST_PORTS = {"prefect": {"prefect": 4200}, "ray": {"ray": 6379, "dashboard": 8265}, "forkserver": {}}
"""The ports of each service: their names, and where the search for a free one begins."""


def up(root: Path, ports: Mapping[str, int | None] | None = None) -> Record:
    """Starts the services of the lab that are not up, side by side. Returns the record of all.

    `ports`: those to be used, by name ("prefect", "ray", "dashboard"); for the others the first free one is taken.
    Raises PicoError where a port that was asked for is taken, or a service ends or stays silent; then everything that
    this call started is stopped again.
    """
    root = _project(root)
    with _locked(root):
        record = read_record(root)
        missing = [name for name, live in LIVE.items() if not live(record)]
        if "prefect" in missing and "forkserver" not in missing:  # it has the old server's address
            missing.append("forkserver")
        if not missing:
            return record
        _stop(root, record, missing)  # a stale record, or one that hangs
        chosen = _choose_ports(ports or {}, missing)
        started: dict[str, subprocess.Popen] = {}
        try:
            # The fork server comes last: its imports, some 10 s of CPU time, are wanted by the second stage only.
            for names in ([name for name in missing if name != "forkserver"], ["forkserver"]):
                for name in set(names) & set(missing):
                    started[name], record[name] = START[name](root, chosen, record)
                    write_json(root / LAB / "lab.json", record)  # at once, so that a half-started lab can be stopped
                _await_health(root, record, started)
        except BaseException:
            _stop(root, record, list(started))
            raise
    return record


def down(root: Path) -> list[str]:
    """Stops what `up` started in this clone, and nothing else. Returns the names of the services that were running."""
    root = _project(root)
    with _locked(root):
        return _stop(root, read_record(root), list(LIVE))


def status(root: Path) -> dict[str, str | None]:
    """Returns the addresses of `prefect`, `ray`, `dashboard` and `forkserver`; None for each that does not answer."""
    record = read_record(_project(root))
    api, ray = live_prefect(record), live_ray(record)
    return {
        "prefect": api and api.removesuffix("/api"),
        "ray": ray,
        "dashboard": ray and f"http://127.0.0.1:{record['ray']['dashboard']}",
        "forkserver": live_forkserver(record),
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
    """Lets one `up` or `down` at a time into a clone; the lock is freed by the system if the process dies."""
    folder = root / LAB
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "w")  # noqa: SIM115 - held until the end of the with
    except OSError as error:
        raise PicoError(f"cannot write {folder}: {error.strerror}", mend="make it writable") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _choose_ports(ports: Mapping[str, int | None], missing: list[str]) -> dict[str, int]:
    """Returns a port by name for the services in `missing`. Raises PicoError where one that was asked for is taken."""
    chosen: dict[str, int] = {}
    for name, first in [entry for service in missing for entry in FIRST_PORTS[service].items()]:
        asked = ports.get(name)
        if asked is not None and not is_free(asked):
            raise PicoError(
                f"port {asked} is in use{_holder(asked)}",
                where=f"--{name}-port {asked}",
                mend=f"stop that program, or name another: pico up --{name}-port N (without it, a free one is found)",
            )
        free = (port for port in range(first, first + 200) if port not in chosen.values() and is_free(port))
        if (port := asked or next(free, None)) is None:
            raise PicoError(f"no port from {first} to {first + 199} is free", mend=f"name one: pico up --{name}-port N")
        chosen[name] = port
    return chosen


def _holder(port: int) -> str:
    """Returns which program listens on `port`, as far as this user may know."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    return ""


def _environment(**more: str) -> dict[str, str]:
    """Returns the environment of a service: the switches, and no address of another Prefect or Ray."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("PREFECT_API_URL", "RAY_ADDRESS")}
    return {**SWITCHES, **inherited, **more}


def _start_prefect(root: Path, ports: dict[str, int], record: Record) -> tuple[subprocess.Popen, Record]:
    port = ports["prefect"]
    home = root / LAB / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    for old in home.glob("ui-*"):
        shutil.rmtree(old, ignore_errors=True)
    process, entry = _spawn(root, "prefect", server_command(port), _environment(**server_environment(home, port)))
    return process, {**entry, "port": port}


def _start_ray(root: Path, ports: dict[str, int], record: Record) -> tuple[subprocess.Popen, Record]:
    folder = ray_folder(root, "lab")
    (folder / RAY_READY).unlink(missing_ok=True)
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


def _start_forkserver(root: Path, ports: dict[str, int], record: Record) -> tuple[subprocess.Popen, Record]:
    """Has the very environment that the stages will have, so that it imports what they would import."""
    path = ray_folder(root, "fork") / "socket"
    environment = {**os.environ, "PREFECT_API_URL": f"http://127.0.0.1:{record['prefect']['port']}/api"}
    process, entry = _spawn(
        root, "forkserver", [sys.executable, "-m", "flows.lab.forkserver", "--socket", str(path)], environment
    )
    return process, {**entry, "socket": str(path), "folder": str(path.parent)}


START = {"prefect": _start_prefect, "ray": _start_ray, "forkserver": _start_forkserver}


def _spawn(root: Path, name: str, command: list[str], environment: dict[str, str]) -> tuple[subprocess.Popen, Record]:
    """Starts a service in a session of its own, so that Ctrl-C in a terminal does not reach it; logs to runs/lab."""
    with open(root / LAB / f"{name}.log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    return process, {"pid": process.pid, "started": psutil.Process(process.pid).create_time()}


def _await_health(root: Path, record: Record, started: dict[str, subprocess.Popen]) -> None:
    """Waits until all that was started answers. Raises PicoError with the log's end if one ends or stays silent."""
    deadline = time.monotonic() + START_SECONDS
    waiting = dict(started)
    while waiting:
        for name, process in list(waiting.items()):
            if LIVE[name](record):
                del waiting[name]
            elif process.poll() is not None:
                raise _failure(root, name, f"ended with status {process.returncode} while starting")
            elif time.monotonic() > deadline:
                raise _failure(root, name, f"did not answer within {START_SECONDS} seconds")
        time.sleep(0.1)


def _failure(root: Path, name: str, what: str) -> PicoError:
    log = root / LAB / f"{name}.log"
    last = log.read_text(errors="replace").strip().splitlines()[-8:]
    return PicoError(
        "\n".join([f"{name} {what}; its log ends:", *(f"    {line}" for line in last)]),
        where=str(log),
        mend="mend what it says, then: pico up",
    )


def _stop(root: Path, record: Record, names: list[str]) -> list[str]:
    """Ends recorded services with all their processes, and forgets them. Returns the names of those that ran."""
    entries = {name: record.pop(name) for name in names if name in record}
    running = {name: psutil.Process(entry["pid"]) for name, entry in entries.items() if same_process(entry)}
    processes = [process for main in running.values() for process in (main, *main.children(recursive=True))]
    _signal(running.values(), signal.SIGTERM)  # Ray's and Prefect's main processes end their own
    psutil.wait_procs(running.values(), timeout=STOP_SECONDS)
    folders = [entry["folder"] for entry in entries.values() if "folder" in entry]
    processes += _left_in(folders)  # Ray's, whose parent may have been killed
    _signal(processes, signal.SIGKILL)
    psutil.wait_procs(processes, timeout=STOP_SECONDS)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    path = root / LAB / "lab.json"
    if record:
        write_json(path, record)
    else:
        path.unlink(missing_ok=True)
    return list(running)


def _left_in(folders: list[str]) -> Iterator[psutil.Process]:
    """Yields this user's processes whose command line names one of the lab's own folders."""
    for process in psutil.process_iter(["uids", "cmdline"]):
        uids, words = process.info["uids"], process.info["cmdline"] or []
        ours = uids and uids.real == os.getuid() and process.pid != os.getpid()
        if ours and any(folder in word for word in words for folder in folders):
            yield process


def _signal(processes: Iterable, number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            process.send_signal(number)
