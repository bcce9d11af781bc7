"""A Prefect server to report to: the user's or the lab's where there is one, else one for the life of this process."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.lab.environment import answers_http
from pico.errors import PicoError

START_SECONDS = 180
"""How long a server may take to answer: a cold disk, a new database and a busy machine are slow."""


@contextmanager
def prefect_session() -> Iterator[None]:
    """Within it, Prefect has a server: that of PREFECT_API_URL, or a temporary one that ends when this process ends.

    Prefect could start one itself, but that one dies of the Ctrl-C that it should record, and outlives a `kill -9`.
    Raises PicoError where the temporary server does not come up.
    """
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        get_current_settings,
        temporary_settings,
    )

    url = get_current_settings().api.url or _start_server(Path(os.environ["PREFECT_HOME"]))
    os.environ["PREFECT_API_URL"] = url  # for the processes that this one starts
    # Nobody listens for the heartbeats, and ending the thread that sends them takes up to a second.
    with temporary_settings({PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _start_server(home: Path) -> str:
    from flows.lab.prefect_server import server_command, server_environment

    port = any_free_port()
    log = home / "temporary_server.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [*server_command(port), "--while-stdin-open"],
            env={**os.environ, **server_environment(home, port)},
            stdin=subprocess.PIPE,  # held open until this process ends
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the stage alone
        )
    deadline = time.monotonic() + START_SECONDS
    while not answers_http(port, "/api/health"):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            last = "\n".join(log.read_text(errors="replace").strip().splitlines()[-8:])
            raise PicoError(f"Prefect's server did not start; its log ends:\n{last}", where=str(log), mend="pico up")
        time.sleep(0.05)
    return f"http://127.0.0.1:{port}/api"


def any_free_port() -> int:
    """A port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
