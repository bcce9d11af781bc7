"""The `pico` command. A subcommand imports what it needs when it runs, so that `pico --help` is quick."""

import typer

from pico.cli import analysis, data, lab, settings
from pico.cli.common import Group

app = typer.Typer(
    cls=Group,
    help="Pico: a laboratory in which small language models are made and understood.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for part in (lab, settings, analysis):
    app.add_typer(part.app)
app.add_typer(data.app, name="data", rich_help_panel=settings.PANEL)
