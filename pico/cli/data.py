"""`pico data show`, `find`: the text that the models were trained on."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pico.cli.common import AsJson, Group, clone_root
from pico.files import canonical_json

app = typer.Typer(cls=Group, help="Look up the training data: which text was seen at which step.", no_args_is_help=True)

TOKENS = Path("data/tokens")

Run = Annotated[
    str | None,
    typer.Option(
        show_default="as in params.yaml", metavar="MODEL", help="A model of the suite, or the folder of a run."
    ),
]


@app.command("show")
def data_show(
    step: Annotated[int, typer.Option(min=1, help="A step of training, from 1.")],
    run: Run = None,
    as_json: AsJson = False,
) -> None:
    """Print the batch of a step: its rows, their documents, and the text."""
    root = clone_root()
    from pico.data.lookup import show_step

    rows = show_step(root / TOKENS, _course(root, run), step)
    if as_json:
        print(canonical_json(rows, indent=1))
        return
    for place, row in enumerate(rows):
        print(f"=== step {step}, sequence {place}: row {row['row']} of the shards, {len(row['ids'])} ids")
        for segment in row["segments"]:
            print(f"--- {_segment(segment)}")
            print(segment["text"] + ("<end of document>" if segment["ends"] else ""))


@app.command("find")
def data_find(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text to look for, to the letter.")],
    run: Run = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many rows.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Print at which steps a string was seen, and in which documents; the exit status is 1 where it was in none."""
    root = clone_root()
    from pico.data.lookup import find_text
    from pico.watch.progress import Bar

    course = _course(root, run)
    with Bar("search the shards", 100, "%") as bar:
        found = find_text(root / TOKENS, course, text, limit=limit, progress=bar.fraction)
    if as_json:
        print(canonical_json(found, indent=1))
    for hit in found if not as_json else []:
        steps = ", ".join(map(str, hit["steps"])) or f"none of {course.steps}"
        print(f"step {steps}: row {hit['row']}, id {hit['place']}; {_segment(hit)}")
    if not found:
        print(f"no training row holds {text!r} (a row's end within it would hide it)", file=sys.stderr)
        raise typer.Exit(1)


def _course(root: Path, run: str | None) -> Any:
    """Returns the order of a run's batches: of a model of the suite, of a folder, or as params.yaml says."""
    from pico.config import load_params
    from pico.data.lookup import Course, course_of_run

    params = load_params(root / "params.yaml")
    if run is None:
        return Course(params.training.steps, params.training.batch_size, params.seed)
    own = root / "data" / "models" / params.suite.scale / run
    return course_of_run(own if own.is_dir() else Path(run), root / TOKENS)


def _segment(segment: dict[str, Any]) -> str:
    """Returns a line about a segment."""
    end = segment["offset"] + segment["length"]
    place = f"{segment['source']}.parquet row {segment['document_row']}"
    return f"{segment['domain']}: {place}, ids {segment['offset']} to {end}; document {segment['document']}"
