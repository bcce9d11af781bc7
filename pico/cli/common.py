"""What the commands share: how errors are shown, where the project is, options that several take."""

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


def project_root() -> Path:
    """The nearest folder, from here upwards, that holds dvc.yaml and conf/; makes it the current one."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "conf" / "config.yaml").is_file():
            os.chdir(folder)  # the flows take the current folder for the project's, as DVC's commands do
            return folder
    raise PicoError(
        "this is not a Pico project: neither here nor above are dvc.yaml and conf/config.yaml",
        where=str(here),
        mend="cd to your clone",
    )


AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]
