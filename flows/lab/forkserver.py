"""The lab's fork server: imports the libraries once, then runs each stage in a fork of itself.

A stage process spends 3 to 6 s importing torch, Prefect, Ray and others; a fork starts with all of it done. Nothing of
this project is imported beforehand, so stages always run the code on disk. It is started by `pico up` and used by
`python -m flows`; without it stages run as they would, with the same outs.
"""

import argparse
import atexit
import contextlib
import gc
import importlib
import json
import logging
import os
import re
import runpy
import selectors
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

LIBRARIES = (
    *("numpy", "pandas", "pyarrow.parquet", "pyarrow.dataset", "scipy.stats", "torch", "torch.distributed"),
    *("safetensors.torch", "tokenizers", "transformers.models.llama.modeling_llama", "lm_eval.evaluator"),
    *("prefect", "prefect.artifacts", "prefect.flow_engine", "prefect.task_engine", "prefect.task_runners"),
    *("ray", "great_expectations", "matplotlib.pyplot", "jinja2", "ruamel.yaml", "rich.progress", "httpx"),
)
"""Imported beforehand; none starts threads that a fork would lose (OpenBLAS and jemalloc restart theirs)."""

OF_A_TERMINAL = re.compile(
    r"_|PATH|[A-Z]*PWD|SHLVL|PS\d|LINES|COLUMNS|LS_COLORS|GPG_TTY|DISPLAY|WAYLAND_DISPLAY|COLORTERM|INVOCATION_ID"
    r"|JOURNAL_STREAM|(DVC|SSH|TERM|TMUX|SCREEN|VSCODE|WINDOW|XDG_SESSION|DBUS|MAKE|VIRTUAL_ENV)\w*|MFLAGS"
)
"""Variables in which one terminal or command differs from another, and which no library reads as it is imported."""


class Server:
    """Accepts requests on a Unix socket, makes a fork for each, and reports how the forks end."""

    def __init__(self, listener: socket.socket, environment: dict[str, str]) -> None:
        self.listener = listener
        self.environment = environment
        """As it was before the imports."""
        self.packages = _packages_stamp()
        self.selector = selectors.DefaultSelector()
        self.clients: dict[int, socket.socket] = {}
        """The client of each fork, by process number."""

    def serve(self) -> dict[str, Any]:
        """Serves until terminated. Returns in forks only, with the request that the fork is for."""
        ended, wakeup = socket.socketpair()
        for end in (ended, wakeup):
            end.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno())
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # only so that the loop wakes up
        self.selector.register(ended, selectors.EVENT_READ, lambda: self._collect(ended))
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        while True:
            for key, _ in self.selector.select():
                if (request := key.data()) is not None:
                    return request

    def _accept(self) -> dict[str, Any] | None:
        client, _ = self.listener.accept()
        client.settimeout(10)
        request: dict[str, Any] | None = None
        terminal: list[int] = []
        with contextlib.suppress(OSError, ValueError):  # not one of ours
            request, terminal = _receive(client)
            if refused := self._refusal(request):
                request = None
                _send(client, {"refused": refused})
        if request is None:
            for descriptor in terminal:
                os.close(descriptor)
            client.close()
            return None
        sys.stdout.flush()
        sys.stderr.flush()
        process = os.fork()
        if process == 0:
            self._leave_to(client, terminal)
            return request
        for descriptor in terminal:
            os.close(descriptor)
        self.clients[process] = client
        self.selector.register(client, selectors.EVENT_READ, lambda: self._abandoned(process))
        with contextlib.suppress(OSError):
            _send(client, {"process": process})
        return None

    def _refusal(self, request: dict[str, Any]) -> str:
        """Returns the reason why a fork would differ from a new process; empty where it would not."""
        theirs, ours, mend = request["environment"], self.environment, "(pico down, then pico up)"
        differing = [
            name
            for name in sorted(theirs.keys() | ours.keys())
            if theirs.get(name) != ours.get(name) and not OF_A_TERMINAL.fullmatch(name)
        ]
        if differing:
            return f"{', '.join(differing)} in the environment differ from when it was started {mend}"
        return f"packages were installed since it was started {mend}" if self.packages != _packages_stamp() else ""

    def _leave_to(self, client: socket.socket, terminal: list[int]) -> None:
        """Drops, in a fork, what is the server's, and takes over the client's terminal."""
        signal.set_wakeup_fd(-1)
        self.selector.close()
        for own in (self.listener, client, *self.clients.values()):
            own.close()
        for descriptor, wanted in zip(terminal, (0, 1, 2), strict=True):
            os.dup2(descriptor, wanted)
            os.close(descriptor)
        os.setsid()

    def _collect(self, ended: socket.socket) -> None:
        """Tells the clients of all forks that have ended how they did."""
        ended.recv(4096)
        for process in list(self.clients):
            found, status = os.waitpid(process, os.WNOHANG)
            if not found:
                continue
            client = self.clients.pop(process)
            code = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(OSError, KeyError):  # nobody waits any more
                self.selector.unregister(client)
                _send(client, {"status": code if code >= 0 else 128 - code})
            client.close()

    def _abandoned(self, process: int) -> None:
        """Lets the stage of a client that was killed save what it has and leave, as after SIGTERM."""
        client = self.clients[process]
        self.selector.unregister(client)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)


def _receive(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Returns a request and the client's standard streams. Raises ValueError if it is another user's or broken."""
    user = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    if user != os.getuid():
        raise ValueError("another user")
    data, terminal, _, _ = socket.recv_fds(client, 1 << 16, 3)
    while not data.endswith(b"\n"):
        if not (more := client.recv(1 << 16)):
            raise ValueError("half a request")
        data += more
    return json.loads(data), terminal


def _send(client: socket.socket, answer: dict[str, Any]) -> None:
    client.sendall(json.dumps(answer).encode() + b"\n")


def _packages_stamp() -> list[int]:
    """Changes when a package is installed or removed: each has a folder of its own there."""
    return [
        os.stat(place).st_mtime_ns for place in sys.path if place.endswith("site-packages") and os.path.isdir(place)
    ]


def _become(request: dict[str, Any], set_by_imports: dict[str, str], leaving: "_Leaving") -> None:
    """Makes this fork what `python -m flows.STAGE` would have been, and runs the stage."""
    stage, *arguments = request["arguments"]
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update({**request["environment"], **set_by_imports})
    os.chdir(request["folder"])
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
    for name in [name for name in sys.modules if name.split(".")[0] in ("flows", "pico")]:
        del sys.modules[name]  # what this process needed of the project; the stage takes its own from the disk
    importlib.invalidate_caches()
    if configuration := sys.modules.get("prefect.logging.configuration"):
        configuration.setup_logging(incremental=False)  # its console has seen the server's log, not this terminal
    sys.path[0] = request["folder"]
    sys.argv = [f"flows.{stage}", *arguments]
    try:
        runpy.run_module(f"flows.{stage}", run_name="__main__", alter_sys=True)
        leaving.status = 0
    except SystemExit as end:
        leaving.status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except BaseException as error:
        leaving.status = 130 if isinstance(error, KeyboardInterrupt) else 1
        raise


class _Leaving:
    """Ends a fork after all exit functions, without taking its libraries apart piece by piece, which takes 0.6 s."""

    def __init__(self) -> None:
        self.status: int | None = None
        """The exit status of the stage that this process ran; None in the server itself."""
        atexit.register(self)  # before those of the libraries, so that it runs after them

    def __call__(self) -> None:
        if self.status is not None:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.status)


def main() -> None:
    """Runs the server."""
    leaving = _Leaving()
    parser = argparse.ArgumentParser(prog="python -m flows.lab.forkserver", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--socket", type=Path, required=True, help="where to listen; the folder decides who may connect"
    )
    path = parser.parse_args().socket
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    before = dict(os.environ)
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):  # an extra that is not installed here
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the collector leaves alone what all forks share
    set_by_imports = {name: value for name, value in os.environ.items() if before.get(name) != value}
    _become(Server(listener, before).serve(), set_by_imports, leaving)


if __name__ == "__main__":
    main()
