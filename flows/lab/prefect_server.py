"""The Prefect server, as the lab and a stage without a lab start it: on loopback, with SQLite and the bundled UI.

`python -m flows.lab.prefect_server --port N [--while-stdin-open]`. It is `prefect server start` without the command
line's two seconds, and with an end: with the option it leaves when its standard input closes, that is when whoever
started it is gone, by whatever death.
"""

import argparse
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

UNUSED_SERVICES = ("SCHEDULER", "LATE_RUNS", "FOREMAN", "TRIGGERS", "PAUSE_EXPIRATIONS")
"""Services of the server that serve deployments and automations, which Pico does not use; they poll the database."""


def server_command(port: int) -> list[str]:
    """The command that runs this module."""
    return [sys.executable, "-m", "flows.lab.prefect_server", "--port", str(port)]


def server_environment(home: Path, port: int) -> dict[str, str]:
    """The settings of a server whose database and UI files lie in `home`; it writes its port into the latter."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_UI_STATIC_DIRECTORY": str(home / f"ui-{port}"),  # by default in the package: shared, or read-only
        "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
        **{f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false" for service in UNUSED_SERVICES},
    }


def _leave_with_parent() -> None:
    sys.stdin.buffer.read()
    shutil.rmtree(os.environ["PREFECT_UI_STATIC_DIRECTORY"], ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """The command line of this module."""
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
