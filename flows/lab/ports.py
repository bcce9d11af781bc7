"""The ports of the lab: those asked for, or the first free ones."""

import socket
from dataclasses import dataclass

from pico.errors import PicoError

FIRST_PORTS = {"prefect": 4200, "ray": 6379, "dashboard": 8265}
"""Where the search for a free port begins when none is asked for."""


@dataclass(frozen=True)
class Ports:
    """The ports asked for; None means the first free one from the usual one on."""

    prefect: int | None = None
    ray: int | None = None
    dashboard: int | None = None


ANY_PORTS = Ports()


def choose_ports(ports: Ports, missing: list[str]) -> dict[str, int]:
    """A port for each purpose of the services in `missing`. Raises PicoError where one that was asked for is taken."""
    wanted = {"prefect": ["prefect"], "ray": ["ray", "dashboard"], "forkserver": []}
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
