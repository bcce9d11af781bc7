"""`python -m flows STAGE [--model NAME]`: runs one stage, as dvc.yaml does; `python -m flows.STAGE`, only sooner.

Where the lab is up, its fork server has imported the libraries already and runs the stage in a fork of itself, with
this process's terminal, folder and environment. This process then passes signals on, and ends as the stage ends.
"""

import contextlib
import json
import os
import runpy
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from flows.lab.environment import live_forkserver, read_record

STAGES = ("fetch", "fetch_benchmarks", "prepare", "validate", "pretrain", "analyze", "benchmark", "export", "report")
ANSWER_SECONDS = 120
"""The time that the fork server may take for its own imports before the stage goes its own way."""


def main() -> None:
    """Runs the command line of the package."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in STAGES:
        print(f"usage: python -m flows STAGE [--model NAME]; a stage is one of: {', '.join(STAGES)}", file=sys.stderr)
        sys.exit(2)
    stage = arguments[0]
    # What libraries read as they are imported is another for fetch: it alone may go online.
    if stage != "fetch" and (server := _connect()):
        try:
            status = _run_in_fork(server, arguments)
        except KeyboardInterrupt:  # before the fork was made; afterwards it is the fork that decides
            sys.exit(130)
        if status is not None:
            sys.exit(status)
    sys.argv = [sys.argv[0], *arguments[1:]]
    runpy.run_module(f"flows.{stage}", run_name="__main__", alter_sys=True)


def _connect() -> socket.socket | None:
    """Connects to the fork server of this clone's lab. Returns None where there is none."""
    if path := live_forkserver(read_record(Path.cwd())):
        server = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            server.connect(path)
            return server
        server.close()
    return None


def _run_in_fork(server: socket.socket, arguments: list[str]) -> int | None:
    """Runs the stage in a fork of the server. Returns its exit status, or None where the server refuses."""
    request = {"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    server.settimeout(ANSWER_SECONDS)
    try:
        socket.send_fds(server, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
        with server.makefile("r") as answers:
            answer = _next(answers)
            if "process" not in answer:
                if reason := answer.get("refused"):
                    print(f"{arguments[0]}: starting without the lab's fork server: {reason}", file=sys.stderr)
                return None
            server.settimeout(None)

            def pass_on(number: int, frame: Any) -> None:
                with contextlib.suppress(ProcessLookupError):  # it ended; its status is on its way
                    os.kill(answer["process"], number)

            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, pass_on)
            return _next(answers).get("status", 1)  # no status: the server was killed, and the stage with it
    except OSError:  # the server ended, or is silent
        return None


def _next(answers: Any) -> dict[str, Any]:
    line = answers.readline()
    return json.loads(line) if line else {}


if __name__ == "__main__":
    main()
