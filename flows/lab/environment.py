"""The environment of every process of the project, and the record of the lab that is up.

It is set before Prefect, Ray or Hugging Face are imported. Only the standard library is imported here,
because `flows/__init__.py` calls `prepare` first thing in every stage.
"""

import json
import os
import secrets
import socket
from contextlib import closing, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

LAB = Path("runs/lab")
"""The folder of a clone's lab, from its root: records, token, logs and Prefect's database."""

RAY_READY = "ray_current_cluster"
"""The file that Ray writes into its folder once it is ready."""

SWITCHES = {
    # Nothing leaves the machine.
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    # DVC is the only cache.
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_TASKS_DEFAULT_PERSIST_RESULT": "false",
    "PREFECT_TASKS_DEFAULT_NO_CACHE": "true",
    "PREFECT_TASKS_DISABLE_CACHING": "true",
    # flows/lab/prefect_server.py starts a server where there is none; anything else that would is given time.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    # The rest is for quiet terminals and idle processors.
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_enable_metrics_collection": "0",
    # Workers would run at niceness 15. Two threads that train wait all the time for the one that shares its core with
    # anything else: beside one busy process it keeps a fourth of its speed at niceness 0, a thirteenth at 15.
    "RAY_worker_niceness": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nobody is served whom a stopping node would have to wait for; 30 s
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
}
"""Each is set unless the user has set it."""

SET_BY_US: set[str] = set()
"""Those switches that the user had not set when this process began."""


def prepare(root: Path | None = None) -> None:
    """Sets the environment of this process and its children. Call it before Prefect is imported.

    Whatever the user has set stands. In a folder that is no project (it has no params.yaml) only the switches are set.
    """
    root = (root or Path.cwd()).resolve()
    for name, value in SWITCHES.items():
        if name not in os.environ:
            SET_BY_US.add(name)
            os.environ[name] = value
    if not (root / "params.yaml").is_file():
        return
    os.environ.setdefault("PREFECT_HOME", str(root / LAB / "prefect"))
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_DATASETS_CACHE", str(root / "runs/cache/datasets"))
    home = os.environ.get("HOME", "")
    if not (home and os.access(home, os.W_OK | os.X_OK)):  # as in many containers and batch systems
        for name, place in (("HF_HOME", "huggingface"), ("MPLCONFIGDIR", "matplotlib"), ("XDG_CACHE_HOME", "xdg")):
            os.environ.setdefault(name, str(root / "runs/cache" / place))
    if "PREFECT_API_URL" not in os.environ and (url := live_prefect(read_record(root))):
        os.environ["PREFECT_API_URL"] = url
    if "RAY_ADDRESS" not in os.environ and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # for all its name: Ray then listens on loopback alone
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(ray_token(root))


def ray_token(root: Path) -> Path:
    """Returns the file with the token of this clone's Ray, made when missing and readable by its owner only."""
    path = root / LAB / "ray_token"
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), open(path, "x", opener=partial(os.open, mode=0o600)) as file:
        file.write(secrets.token_hex(32))
    return path


def read_record(root: Path) -> dict[str, Any]:
    """Returns the lab's record; an empty one where no lab was started here or its record cannot be read."""
    with suppress(OSError, ValueError):
        record = json.loads((root / LAB / "lab.json").read_bytes())
        return record if isinstance(record, dict) else {}
    return {}


def live_prefect(record: dict[str, Any]) -> str | None:
    """Returns the API address of the recorded Prefect server, if its process is the recorded one and it answers."""
    entry = record.get("prefect")
    if entry and same_process(entry) and answers_http(entry["port"], "/api/health"):
        return f"http://127.0.0.1:{entry['port']}/api"
    return None


def live_ray(record: dict[str, Any]) -> str | None:
    """Returns the address of the recorded Ray head, if its process is the recorded one and it is ready."""
    entry = record.get("ray")
    if not entry or not same_process(entry) or not Path(entry["folder"], RAY_READY).exists():
        return None
    with socket.socket() as probe:
        probe.settimeout(2)
        return f"127.0.0.1:{entry['port']}" if probe.connect_ex(("127.0.0.1", entry["port"])) == 0 else None


def live_forkserver(record: dict[str, Any]) -> str | None:
    """Returns the socket of the recorded fork server, if its process is the recorded one and it listens.

    It does so before it has imported everything; who comes early waits.
    """
    entry = record.get("forkserver")
    return entry["socket"] if entry and same_process(entry) and Path(entry["socket"]).exists() else None


def same_process(entry: dict[str, Any]) -> bool:
    """Returns whether the process that was recorded still runs; a later one of the same number does not count."""
    import psutil

    with suppress(psutil.Error):
        process = psutil.Process(entry["pid"])
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - entry["started"]) < 1
    return False


def answers_http(port: int, path: str) -> bool:
    """Returns whether 127.0.0.1:port answers GET `path` with 200."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection, suppress(OSError, HTTPException):
        connection.request("GET", path)
        return connection.getresponse().status == 200
    return False


def is_free(port: int) -> bool:
    """Returns whether a server could listen on 127.0.0.1:port now."""
    with socket.socket() as probe, suppress(OSError, OverflowError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True
    return False


def any_free_port() -> int:
    """Returns a port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
