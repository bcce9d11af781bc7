"""`pico metrics`, `analyze`, `capture`: checkpoints of any model, and what is measured of them."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pico.cli.common import AsJson, Group, project_root
from pico.errors import PicoError

if TYPE_CHECKING:
    from pico.plugins import UserFile

app = typer.Typer(cls=Group)

Files = Annotated[
    list[Path] | None, typer.Option("--file", help="A Python file of your own metrics and components; repeatable.")
]


@app.command()
def metrics(file: Files = None, as_json: AsJson = False) -> None:
    """List all metrics: definition, valid inputs, what they compare with, source."""
    from pico.analysis.engine.listing import list_metrics
    from pico.analysis.engine.plugins import load_metric_files, read_metric_file
    from pico.behaviour.settings import list_behaviour

    load_metric_files([*_metric_files_of_the_project(), *(read_metric_file(path) for path in file or [])])
    rows = [*list_metrics(), *list_behaviour()]
    if as_json:
        from pico.files import canonical_json

        print(canonical_json(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("metric", no_wrap=True), "definition", "of", "inputs", "compared with", "source")
    for row in rows:
        cells = (row["name"], row["definition"], ", ".join(row["applies_to"]), row["inputs"])
        table.add_row(*map(_plain, (*cells, row["target"] or "", row["source"])))
    # Where nobody looks on, as in a pipe, a row is not broken at the 80 columns that are assumed there.
    Console(width=None if sys.stdout.isatty() else 240).print(table)


@app.command()
def analyze(
    target: Annotated[str, typer.Argument(metavar="PATH_OR_HUB_ID", help="A run, a model's folder, or owner/name.")],
    revision: Annotated[list[str] | None, typer.Option(help="Of a hub id: step1000, or NAME=STEP; repeatable.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Names, separated by commas; see pico metrics.")] = None,
    components: Annotated[str, typer.Option(help="Names, separated by commas.")] = "simple,ov_circuit",
    layers: Annotated[str, typer.Option(help="all, or numbers and ranges: 0-3,8")] = "all",
    modules: Annotated[str | None, typer.Option(help="Which modules are captured, separated by commas.")] = None,
    text: Annotated[Path | None, typer.Option(help="UTF-8, or Parquet with input_ids, to capture states on.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer's folder, if not the checkpoint's own.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Sequences of the batch.")] = 16,
    seq_len: Annotated[int | None, typer.Option(min=1, show_default="128", help="Positions of each.")] = None,
    positions: Annotated[int, typer.Option(min=1, help="Positions of each that are kept.")] = 128,
    mapping: Annotated[Path | None, typer.Option(help="Where an unknown architecture keeps its projections.")] = None,
    tokens_per_step: Annotated[int, typer.Option(min=0, help="For the table's column `tokens`.")] = 0,
    file: Files = None,
    name: Annotated[str | None, typer.Option(help="What the table calls the model.")] = None,
    out: Annotated[Path | None, typer.Option(show_default="analyzed/NAME", help="Where the results go.")] = None,
) -> None:
    """Analyze anybody's checkpoints: a pico run, the published Pico layout, or a Hugging Face causal LM."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before transformers is imported
    from pico.analysis.engine.plugins import read_metric_file
    from pico.capture.analysis import DEFAULT_METRICS, analyze_place
    from pico.capture.places import find
    from pico.capture.run import MODULES, Settings
    from pico.report.any_model import write_pictures

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
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as shown:
        lines = {what: shown.add_task(what, total=None) for what in ("capture", "measure")}
        made = analyze_place(
            place,
            settings,
            folder,
            name=name,
            metrics=metrics.split(",") if metrics else DEFAULT_METRICS,
            components=components.split(","),
            files=[read_metric_file(path) for path in file or []],
            report=lambda what, done, total: shown.update(lines[what], completed=done, total=total),
        )
        drawing = shown.add_task("draw", total=None)
        drawn = len(write_pictures(folder, made.run, name))
        shown.update(drawing, completed=1, total=1)
    print(f"{folder} holds {made.rows} values of {len(place.folders)} checkpoints of {name}")
    print(f"{drawn} figures are in {folder}/figures; {folder}/explorer.html shows every value")


@app.command()
def capture(
    target: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, a run, a model's folder, owner/name.")
    ],
    out: Annotated[Path | None, typer.Option(show_default="captured/NAME", help="Where the results go.")] = None,
    tokens: Annotated[Path, typer.Option(help="Of a pico run: the tokens that it was trained on.")] = Path(
        "data/tokens"
    ),
    modules: Annotated[str | None, typer.Option(help="Which modules are captured, separated by commas.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, show_default="the run's own, or 16", help="Sequences.")] = None,
    positions: Annotated[
        int | None, typer.Option(min=1, show_default="the run's own, or 128", help="Positions of each that are kept.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="UTF-8, or Parquet with input_ids, to capture on instead.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer's folder, if not the checkpoint's own.")] = None,
    seq_len: Annotated[int | None, typer.Option(min=1, show_default="128", help="Positions of a text's row.")] = None,
    layers: Annotated[str, typer.Option(help="Of a text: all, or numbers and ranges: 0-3,8")] = "all",
    mapping: Annotated[Path | None, typer.Option(help="Where an unknown architecture keeps its projections.")] = None,
    revision: Annotated[list[str] | None, typer.Option(help="Of a hub id: step1000, or NAME=STEP; repeatable.")] = None,
) -> None:
    """Capture learning dynamics of checkpoints afterwards: of a pico run, bit for bit as training does."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before transformers is imported
    from pico.capture.afterwards import Own, capture_place, default_name
    from pico.capture.places import find
    from pico.capture.run import MODULES, Settings

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
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as shown:
        line = shown.add_task("capture", total=len(place.folders))
        made = capture_place(
            place,
            folder,
            settings,
            Own(layers=chosen, batch_size=rows, positions=positions),
            tokens,
            report=lambda done, total: shown.update(line, completed=done, total=total),
        )
    steps = f"step {made[0].step}" if len(made) == 1 else f"{len(made)} checkpoints"
    print(f"{folder} holds the learning dynamics of {steps}; measure them with: pico analyze {folder}")


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)  # square brackets in a definition are not markup


def _metric_files_of_the_project() -> "tuple[UserFile, ...]":
    """Those that params.yaml names, where the current folder is in a project."""
    from pico.analysis.engine.plugins import read_metric_files
    from pico.config import load_params

    try:
        root = project_root()
    except PicoError:
        return ()
    return read_metric_files(load_params(root / "params.yaml").analysis.files, root)
