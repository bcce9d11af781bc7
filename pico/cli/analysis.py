"""`pico metrics`, `analyze`, `capture`: measurements of checkpoints of any model."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pico.cli.common import AsJson, Group, clone_root
from pico.errors import PicoError
from pico.files import canonical_json

if TYPE_CHECKING:
    from pico.plugins import UserFile

TOKENS = Path("data/tokens")
PANEL = "Checkpoints of any model, in a clone or elsewhere"

app = typer.Typer(cls=Group)

Files = Annotated[
    list[Path] | None, typer.Option("--file", help="A Python file of your own metrics and components; repeatable.")
]
Revision = Annotated[
    list[str] | None, typer.Option(help="For a hub id: a revision such as step1000, or NAME=STEP; repeatable.")
]
Modules = Annotated[str | None, typer.Option(help="Modules to capture, separated by commas.")]
Text = Annotated[Path | None, typer.Option(help="Text to capture states on: UTF-8, or Parquet with input_ids.")]
Tokenizer = Annotated[Path | None, typer.Option(help="A tokenizer's folder, if not the checkpoint's own.")]
SeqLen = Annotated[int | None, typer.Option(min=1, show_default="128", help="Positions of each sequence of a text.")]
Mapping = Annotated[Path | None, typer.Option(help="A file that names the projections of an unknown architecture.")]


@app.command(rich_help_panel=PANEL)
def metrics(file: Files = None, as_json: AsJson = False) -> None:
    """List all metrics: definition, valid inputs, what they compare with, source."""
    from pico.analysis.engine.plugins import load_metric_files, read_metric_file
    from pico.analysis.listing import list_metrics
    from pico.analysis.metrics import catalogue  # noqa: F401 (its metrics are listed)
    from pico.behaviour import measure  # noqa: F401 (likewise)

    load_metric_files([*_metric_files_of_the_clone(), *(read_metric_file(path) for path in file or [])])
    rows = list_metrics()
    if as_json:
        print(canonical_json(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text as Plain  # in which square brackets are not markup

    table = Table(Column("metric", no_wrap=True), "definition", "of", "inputs", "compared with", "source")
    for row in rows:
        cells = (row["name"], row["definition"], ", ".join(row["applies_to"]), row["inputs"])
        table.add_row(*map(Plain, (*cells, row["target"] or "", row["source"])))
    # In a pipe, a row is not broken at the 80 columns that are assumed there.
    Console(width=None if sys.stdout.isatty() else 240).print(table)


@app.command(rich_help_panel=PANEL)
def analyze(
    target: Annotated[str, typer.Argument(metavar="PATH_OR_HUB_ID", help="A run, a model's folder, or owner/name.")],
    revision: Revision = None,
    metrics: Annotated[str | None, typer.Option(help="Names, separated by commas; see pico metrics.")] = None,
    components: Annotated[str, typer.Option(help="Names, separated by commas.")] = "simple,ov_circuit",
    layers: Annotated[str, typer.Option(help="all, or numbers and ranges: 0-3,8")] = "all",
    modules: Modules = None,
    text: Text = None,
    tokenizer: Tokenizer = None,
    rows: Annotated[int, typer.Option(min=1, help="Sequences of the batch.")] = 16,
    seq_len: SeqLen = None,
    positions: Annotated[int, typer.Option(min=1, help="Positions of each sequence that are kept.")] = 128,
    mapping: Mapping = None,
    tokens_per_step: Annotated[
        int, typer.Option(min=0, help="Tokens of a training step, for the table's column `tokens`.")
    ] = 0,
    file: Files = None,
    name: Annotated[str | None, typer.Option(help="The model's name in the table.")] = None,
    out: Annotated[Path | None, typer.Option(show_default="analyzed/NAME", help="Folder for the results.")] = None,
) -> None:
    """Analyze anybody's checkpoints: a pico run, the published Pico layout, or a Hugging Face causal LM."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before transformers is imported
    from pico.analysis.engine.plugins import read_metric_file
    from pico.capture.commands import analyze_place
    from pico.capture.places import find
    from pico.capture.run import MODULES, Settings
    from pico.report.any_model import write_pictures
    from pico.watch.progress import Bar

    captured = tuple(modules.split(",")) if modules else MODULES
    if "residual" in components.split(","):
        captured = (*captured, "residual")
    settings = Settings(
        text=text,
        tokenizer=tokenizer,
        mapping=mapping,
        modules=tuple(dict.fromkeys(captured)),
        layers=layers,
        rows=rows,
        seq_len=seq_len,
        positions=positions,
        tokens_per_step=tokens_per_step,
    )
    place = find(target, revision or [])
    name = name or place.name
    folder = out or Path("analyzed") / name
    with Bar(f"analyze {name}", None, "parts") as bar:
        values, run = analyze_place(
            place,
            settings,
            folder,
            name=name,
            metrics=metrics.split(",") if metrics else None,
            components=components.split(","),
            files=[read_metric_file(path) for path in file or []],
            report=lambda step, done, total: bar.update(done, total, note=step),
        )
        bar.update(note="draw")
        drawn = len(write_pictures(folder, run, name))
    print(f"{folder} holds {values} values of {len(place.folders)} checkpoints of {name}")
    print(f"{drawn} figures are in {folder}/figures; {folder}/explorer.html shows every value")


@app.command(rich_help_panel=PANEL)
def capture(
    target: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, a run, a model's folder, owner/name.")
    ],
    out: Annotated[Path | None, typer.Option(show_default="captured/NAME", help="Folder for the results.")] = None,
    tokens: Annotated[Path, typer.Option(help="For a pico run: the tokens that it was trained on.")] = TOKENS,
    modules: Modules = None,
    rows: Annotated[int | None, typer.Option(min=1, show_default="the run's own, or 16", help="Sequences.")] = None,
    positions: Annotated[
        int | None, typer.Option(min=1, show_default="the run's own, or 128", help="Positions of each that are kept.")
    ] = None,
    text: Text = None,
    tokenizer: Tokenizer = None,
    seq_len: SeqLen = None,
    layers: Annotated[str, typer.Option(help="With a text: all, or numbers and ranges: 0-3,8")] = "all",
    mapping: Mapping = None,
    revision: Revision = None,
) -> None:
    """Capture learning dynamics of checkpoints afterwards: of a pico run, bit for bit as training does."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before transformers is imported
    from pico.capture.commands import Own, capture_place, default_name
    from pico.capture.places import find
    from pico.capture.run import MODULES, Settings
    from pico.watch.progress import Bar

    place = find(target, revision or [])
    chosen = modules.split(",") if modules else None
    settings = Settings(
        text=text,
        tokenizer=tokenizer,
        mapping=mapping,
        modules=chosen or MODULES,
        layers=layers,
        rows=rows or 16,
        seq_len=seq_len,
        positions=positions or 128,
    )
    folder = out or Path("captured") / default_name(place)
    own = Own(layers=chosen, batch_size=rows, positions=positions)
    with Bar(f"capture {folder.name}", len(place.folders), "checkpoints") as bar:
        made = capture_place(place, folder, settings, own, tokens, report=bar.update)
    steps = f"step {made[0].step}" if len(made) == 1 else f"{len(made)} checkpoints"
    print(f"{folder} holds the learning dynamics of {steps}; measure them with: pico analyze {folder}")


def _metric_files_of_the_clone() -> "tuple[UserFile, ...]":
    """Returns the files that params.yaml names, where the current folder is in a clone."""
    from pico.analysis.engine.plugins import read_metric_files
    from pico.config import load_params

    try:
        root = clone_root()
    except PicoError:
        return ()
    return read_metric_files(load_params(root / "params.yaml").analysis.files, root)
