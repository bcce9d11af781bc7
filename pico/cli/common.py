"""The parts that all commands share: how errors are shown, where the clone is, and options that several take."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pico.errors import PicoError


class Group(TyperGroup):
    """Shows a PicoError as its message, and ends with status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PicoError as error:
            print(f"pico: {error}", file=sys.stderr)
            raise typer.Exit(1) from None


def clone_root() -> Path:
    """Returns the nearest folder, from here upwards, that is a clone of the repository, and makes it the current one.

    The wheel holds the library only. The graph (dvc.yaml), the settings (conf/) and the package `flows` are in a clone;
    `flows` can be imported afterwards. Raises PicoError where there is no clone.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "conf" / "config.yaml").is_file():
            os.chdir(folder)  # the flows take the current folder for the clone, as DVC's commands do
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
            return folder
    raise PicoError(
        "this is not a clone of Pico's repository, which this command needs: the installed package holds the library, "
        "not the graph (dvc.yaml), the settings (conf/) and the stages (flows/)",
        where=f"{here} and the folders above it",
        mend="cd to your clone; to make one: git clone URL-OF-THE-REPOSITORY pico && cd pico && make install",
    )


AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]
