"""`python -m pico.cli`, where the command itself is not on the path."""

from pico.cli import app

app()
