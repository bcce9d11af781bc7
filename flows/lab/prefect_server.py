"""The Prefect server that flow runs report to, and Prefect's log on the terminal.

`python -m flows.lab.prefect_server --port N [--while-stdin-open]` is the server: on loopback, with SQLite and the
bundled UI. It is `prefect server start` without the command line's two seconds, and with an end: with the option it
leaves when its standard input closes, that is when the process that started it is gone, by whatever death.
"""

import argparse
import copy
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flows.lab.environment import answers_http, any_free_port
from pico.errors import PicoError

if TYPE_CHECKING:
    from rich.console import Console

START_SECONDS = 180
"""The time that a server may take to answer: a cold disk, a new database and a busy machine are slow."""
UNUSED_SERVICES = ("SCHEDULER", "LATE_RUNS", "FOREMAN", "TRIGGERS", "PAUSE_EXPIRATIONS")
"""Services of the server that serve deployments and automations, which Pico does not use; they poll the database."""


def server_command(port: int) -> list[str]:
    """Returns the command that runs this module."""
    return [sys.executable, "-m", "flows.lab.prefect_server", "--port", str(port)]


def server_environment(home: Path, port: int) -> dict[str, str]:
    """Returns the settings of a server with its database and UI files in `home`; it writes its port into the latter."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_UI_STATIC_DIRECTORY": str(home / f"ui-{port}"),  # by default in the package: shared, or read-only
        "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
        **{f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false" for service in UNUSED_SERVICES},
    }


@contextmanager
def prefect_session() -> Iterator[None]:
    """Gives Prefect a server: that of PREFECT_API_URL, or a temporary one that ends when this process ends.

    Prefect could start one itself, but that one dies of the Ctrl-C that it should record, and outlives a `kill -9`.
    Raises PicoError where the temporary server does not come up.
    """
    from prefect import settings

    url = settings.get_current_settings().api.url or _start_temporary(Path(os.environ["PREFECT_HOME"]))
    os.environ["PREFECT_API_URL"] = url  # for the processes that this one starts
    # Nobody listens for the heartbeats, and ending the thread that sends them takes up to a second.
    changed = {settings.PREFECT_API_URL: url, settings.PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    with settings.temporary_settings(changed):
        yield


def _start_temporary(home: Path) -> str:
    """Starts a server that ends with this process. Returns the address of its API."""
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


def log_console() -> "Console | None":
    """Returns the console of Prefect's terminal log, or None without one. A bar drawn on it leaves the log whole."""
    from prefect.logging.handlers import PrefectConsoleHandler

    handlers = logging.getLogger().handlers
    return next((handler.console for handler in handlers if isinstance(handler, PrefectConsoleHandler)), None)


def shorten_tracebacks() -> None:
    """Keeps tracebacks out of the terminal log, and those of domain errors out of the UI. Call it in a flow run.

    `flows.stage` prints the one that matters, once, at the end.
    """
    from prefect.logging.handlers import APILogHandler, PrefectConsoleHandler

    for name in ("prefect", "prefect.flow_runs", "prefect.task_runs", ""):
        for handler in logging.getLogger(name).handlers:
            known = any(isinstance(one, partial) and one.func is _without_traceback for one in handler.filters)
            if isinstance(handler, PrefectConsoleHandler | APILogHandler) and not known:
                errors = PicoError if isinstance(handler, APILogHandler) else BaseException
                handler.addFilter(partial(_without_traceback, handler, errors))


def _without_traceback(handler: logging.Handler, errors: type[BaseException], record: logging.LogRecord) -> bool:
    """Replaces a record that carries the traceback of one of `errors` by one that does not, for one handler only."""
    if not isinstance(record.exc_info, tuple) or not isinstance(record.exc_info[1], errors):
        return True
    short = copy.copy(record)
    short.exc_info = short.exc_text = None
    handler.handle(short)
    return False


def _leave_with_parent() -> None:
    sys.stdin.buffer.read()
    shutil.rmtree(os.environ["PREFECT_UI_STATIC_DIRECTORY"], ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Runs the server."""
    parser = argparse.ArgumentParser(prog="python -m flows.lab.prefect_server", description="Runs the Prefect server.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--while-stdin-open", action="store_true")
    arguments = parser.parse_args()
    if arguments.while_stdin_open:
        threading.Thread(target=_leave_with_parent, daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    uvicorn.run(create_app(final=True), host="127.0.0.1", port=arguments.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
