"""`pico up`, `down`, `status`, `ui`: the services that all stages share."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pico.cli.common import Group, clone_root
from pico.errors import PicoError

Port = Annotated[int | None, typer.Option(min=1, max=65535, show_default="the first free one", metavar="N")]

app = typer.Typer(cls=Group)


@app.command()
def up(prefect_port: Port = None, ray_port: Port = None, dashboard_port: Port = None) -> None:
    """Start the lab, which all stages then share, on loopback: a Prefect server, a Ray head and a fork server."""
    root = clone_root()
    from flows.lab.services import up as start

    start(root, {"prefect": prefect_port, "ray": ray_port, "dashboard": dashboard_port})
    _show_status(root)


@app.command()
def down() -> None:
    """Stop the lab: what `pico up` started in this clone, and nothing else."""
    root = clone_root()
    from flows.lab.services import down as stop

    stopped = stop(root)
    print(f"stopped: {', '.join(stopped)}" if stopped else "the lab was not up")


@app.command()
def status(quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only set the exit status.")] = False) -> None:
    """Show what of the lab is up, and where; the exit status is 0 if all of it is, 3 if not."""
    root = clone_root()
    if not quiet:
        _show_status(root)
    from flows.lab.services import status as lab_status

    if None in lab_status(root).values():
        raise typer.Exit(3)


@app.command()
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


def _show_status(root: Path) -> None:
    from flows.lab.services import status as lab_status

    labels = {"prefect": "Prefect UI", "ray": "Ray head", "dashboard": "Ray dashboard", "forkserver": "Fork server"}
    for name, address in lab_status(root).items():
        print(f"{labels[name]:<14} {address or 'not up'}")
