"""The `pico` command. What is heavy is imported by the subcommand that needs it, so that `pico --help` is quick."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from pico.errors import PicoError

if TYPE_CHECKING:
    from pico.analysis.plugins import MetricFile


class _Group(TyperGroup):
    """Shows a PicoError as its message, and ends with status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PicoError as error:
            print(f"pico: {error}", file=sys.stderr)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Group,
    help="Pico: a laboratory in which small language models are made and understood.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

data_app = typer.Typer(cls=_Group, help="What the models were shown: documents, rows, steps.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Port = Annotated[int | None, typer.Option(min=1, max=65535, show_default="the first free one", metavar="N")]


@app.command()
def up(prefect_port: Port = None, ray_port: Port = None, dashboard_port: Port = None) -> None:
    """Start the lab, which all stages then share, on loopback: a Prefect server, a Ray head and a fork server."""
    root = project_root()
    from flows.lab import up as start
    from flows.ports import Ports

    start(root, Ports(prefect_port, ray_port, dashboard_port))
    _show_status(root)


@app.command()
def down() -> None:
    """Stop the lab: what `pico up` started in this checkout, and nothing else."""
    root = project_root()
    from flows.lab import down as stop

    stopped = stop(root)
    print(f"stopped: {', '.join(stopped)}" if stopped else "the lab was not up")


@app.command()
def status(quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only set the exit status.")] = False) -> None:
    """Show what of the lab is up, and where; the exit status is 0 if all of it is, 3 if not."""
    root = project_root()
    if not quiet:
        _show_status(root)
    from flows.lab import status as lab_status

    if None in lab_status(root).values():
        raise typer.Exit(3)


@app.command()
def ui() -> None:
    """Show the address of Prefect's UI, and open it where there is a display."""
    root = project_root()
    from flows.lab import status as lab_status

    url = lab_status(root)["prefect"]
    if url is None:
        raise PicoError("the lab is not up, so there is no UI", mend="pico up")
    print(url)
    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        import webbrowser

        webbrowser.open(url)


@app.command()
def scale(
    name: Annotated[str, typer.Argument(help="A file of conf/scale/, without its ending.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Hydra overrides, such as optimizer.lr=0.001.")] = None,
) -> None:
    """Write params.yaml for a scale, as `dvc exp run -S scale=NAME` does, for plain `dvc repro`."""
    root = project_root()
    from flows.scales import compose, write_params

    params, text = compose(root, name, overrides or [])
    changed = write_params(root, text)
    verb = "now holds" if changed else "already held"
    print(f"params.yaml {verb} scale {name}: models {', '.join(params.suite.models)}")


@app.command()
def params(
    key: Annotated[str | None, typer.Argument(help="Only this part, such as optimizer or models.tiny.")] = None,
) -> None:
    """Check params.yaml, and print the settings in force."""
    root = project_root()
    from ruamel.yaml import YAML

    from pico.config import load_params

    values: Any = load_params(root / "params.yaml").model_dump(mode="json")
    for part in key.split(".") if key else []:
        if not isinstance(values, dict) or part not in values:
            raise PicoError(f"params.yaml has no setting {key}", mend="see all of them with: pico params")
        values = values[part]
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 120
    if isinstance(values, dict | list):
        yaml.dump(values, sys.stdout)
    else:
        print(values)


@app.command()
def plan(
    setting: Annotated[
        list[str] | None, typer.Option("-S", metavar="KEY=VALUE", help="As of dvc exp run: scale=paper; repeatable.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="h100, h200, a100-80, ..., or cpu for this machine.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, show_default="training.workers", help="How many.")] = None,
    mfu: Annotated[float | None, typer.Option(show_default="0.4, or 0.3 on a CPU", help="Share of the peak.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """What training the suite in force costs: FLOPs, memory, hours, disk; with -S, of settings composed anew.

    The exit status is 1 where a model cannot be trained so, and what to change is said.
    """
    root = project_root()
    from pico.config import load_params
    from pico.plan.plan import find_hardware, gigabytes, plan_suite

    params = load_params(root / "params.yaml")
    if setting:
        from flows.scales import compose

        scales = [one.removeprefix("scale=") for one in setting if one.startswith("scale=")]
        others = [one for one in setting if not one.startswith("scale=")]
        params, _ = compose(root, scales[-1] if scales else params.suite.scale, others)
    hardware = find_hardware(gpu, gpus, mfu, params)
    plans = plan_suite(params, hardware)
    from pico.plan.tables import FORMULAS, plain, tables

    if as_json:
        from pico.files import canonical_json

        print(canonical_json(plain(plans, hardware), indent=1))
    else:
        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else 240)
        for table in tables(plans, hardware):
            console.print(table)
        print(FORMULAS)
        import shutil

        needed, free = sum(one.disk.total for one in plans), shutil.disk_usage(root).free
        if needed > free:
            print(f"The disk of {root} has {gigabytes(free)} free; {gigabytes(needed)} will be needed here.")
    if refusals := [one.refusal for one in plans if one.refusal]:
        raise PicoError("this cannot be trained so:\n" + "\n".join(f"  - {one}" for one in refusals))


Files = Annotated[
    list[Path] | None, typer.Option("--file", help="A Python file of your own metrics and components; repeatable.")
]


@app.command()
def metrics(
    file: Files = None, as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False
) -> None:
    """List all metrics: definition, valid inputs, what they compare with, source."""
    from pico.analysis.listing import list_metrics
    from pico.analysis.plugins import load_metric_files, read_metric_file
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
    from pico.analysis.plugins import read_metric_file
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


Run = Annotated[
    str | None, typer.Option(show_default="as in params.yaml", help="A model of the suite, or the folder of a run.")
]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


@data_app.command("show")
def data_show(
    step: Annotated[int, typer.Option(min=1, help="A step of training, from 1.")],
    run: Run = None,
    as_json: AsJson = False,
) -> None:
    """Print what the batch of a step held: its rows, their documents, and the text."""
    root = project_root()
    from pico.data.lookup import show_step
    from pico.files import canonical_json

    rows = show_step(root / TOKENS, _course(root, run), step)
    if as_json:
        print(canonical_json(rows, indent=1))
        return
    for place, row in enumerate(rows):
        print(f"=== step {step}, sequence {place}: row {row['row']} of the shards, {len(row['ids'])} ids")
        for segment in row["segments"]:
            print(f"--- {_segment(segment)}")
            print(segment["text"] + ("<end of document>" if segment["ends"] else ""))


@data_app.command("find")
def data_find(
    text: Annotated[str, typer.Argument(help="What to look for, to the letter.")],
    run: Run = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many rows.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Print at which steps a string was seen, and in which documents; the exit status is 1 where it was in none."""
    root = project_root()
    from rich.console import Console
    from rich.progress import Progress

    from pico.data.lookup import find_text
    from pico.files import canonical_json

    course = _course(root, run)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as shown:
        line = shown.add_task("searching the shards", total=1.0)
        found = find_text(
            root / TOKENS, course, text, limit=limit, progress=lambda done: shown.update(line, completed=done)
        )
    if as_json:
        print(canonical_json(found, indent=1))
    for hit in found if not as_json else []:
        steps = ", ".join(map(str, hit["steps"])) or f"none of {course.steps}"
        print(f"step {steps}: row {hit['row']}, id {hit['place']}; {_segment(hit)}")
    if not found:
        print(f"no training row holds {text!r} (a row's end within it would hide it)", file=sys.stderr)
        raise typer.Exit(1)


TOKENS = Path("data/tokens")


def _course(root: Path, run: str | None) -> Any:
    """The batches of a run: a model of the suite, a folder, or what params.yaml says."""
    from pico.config import load_params
    from pico.data.lookup import Course, course_of_run

    params = load_params(root / "params.yaml")
    if run is None:
        return Course(params.training.steps, params.training.batch_size, params.seed)
    own = root / "data" / "models" / params.suite.scale / run
    return course_of_run(own if own.is_dir() else Path(run), root / TOKENS)


def _segment(segment: dict[str, Any]) -> str:
    """One line about a segment."""
    end = segment["offset"] + segment["length"]
    place = f"{segment['source']}.parquet row {segment['document_row']}"
    return f"{segment['domain']}: {place}, ids {segment['offset']} to {end}; document {segment['document']}"


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


def _metric_files_of_the_project() -> "tuple[MetricFile, ...]":
    """Those that params.yaml names, where the current folder is in a project."""
    from pico.analysis.plugins import read_metric_files
    from pico.config import load_params

    try:
        root = project_root()
    except PicoError:
        return ()
    return read_metric_files(load_params(root / "params.yaml").analysis.files, root)


def _show_status(root: Path) -> None:
    from flows.lab import status as lab_status

    labels = {"prefect": "Prefect UI", "ray": "Ray head", "dashboard": "Ray dashboard", "forkserver": "Fork server"}
    for name, address in lab_status(root).items():
        print(f"{labels[name]:<14} {address or 'not up'}")


if __name__ == "__main__":
    app()
