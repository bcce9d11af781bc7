"""`pico up`, `down`, `status`, `ui`: the services that all stages share."""

import os
import sys
from typing import Annotated

import typer

from pico.cli.common import Group, clone_root
from pico.errors import PicoError

Port = Annotated[int | None, typer.Option(min=1, max=65535, show_default="the first free one", metavar="N")]

PANEL = "The lab: services that all stages of a clone share"

app = typer.Typer(cls=Group)


@app.command(rich_help_panel=PANEL)
def up(prefect_port: Port = None, ray_port: Port = None, dashboard_port: Port = None) -> None:
    """Start the lab, on loopback: a Prefect server, a Ray head and a fork server."""
    root = clone_root()
    from flows.lab import services

    if missing := [SERVICES[name][0] for name, address in services.status(root).items() if not address]:
        print(f"starting: {', '.join(missing)} (about 15 seconds)", file=sys.stderr)
    services.up(root, {"prefect": prefect_port, "ray": ray_port, "dashboard": dashboard_port})
    _show(services.status(root))


@app.command(rich_help_panel=PANEL)
def down() -> None:
    """Stop the lab: what `pico up` started in this clone, and nothing else."""
    root = clone_root()
    from flows.lab.services import down as stop

    stopped = stop(root)
    print(f"stopped: {', '.join(stopped)}" if stopped else "the lab was not up")


@app.command(rich_help_panel=PANEL)
def status(quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only set the exit status.")] = False) -> None:
    """Show the services of the lab and their addresses; the exit status is 0 if all are up, 3 if not."""
    root = clone_root()
    from flows.lab.services import status as lab_status

    found = lab_status(root)
    if not quiet:
        _show(found)
    if None in found.values():
        raise typer.Exit(3)


@app.command(rich_help_panel=PANEL)
def ui() -> None:
    """Show the address of Prefect's UI, and open it where there is a display."""
    root = clone_root()
    from flows.lab.services import status as lab_status

    url = lab_status(root)["prefect"]
    if url is None:
        raise PicoError("the lab is not up, so there is no UI", mend="pico up")
    print(url)
    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        import webbrowser

        webbrowser.open(url)


SERVICES = {
    "prefect": ("Prefect UI", "flow runs, logs, tables and progress of all stages"),
    "ray": ("Ray head", "spreads the work of stages over processes"),
    "dashboard": ("Ray dashboard", "Ray's tasks, workers and memory"),
    "forkserver": ("Fork server", "starts a stage in half a second"),
}


def _show(addresses: dict[str, str | None]) -> None:
    for name, (label, use) in SERVICES.items():
        shown = "up" if name == "forkserver" and addresses[name] else addresses[name] or "not up"
        print(f"{label:<14} {shown:<22} {use}")
    if None in addresses.values():
        print("start what is not up with: pico up")
