"""Stage `benchmark`: held-out perplexity and benchmarks of chosen checkpoints of one model."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from prefect import task

from flows.stage import Stage, run, watched_by_dvc
from pico.checkpoint import MANIFEST, Checkpoint, checkpoints
from pico.config import Params
from pico.errors import PicoError
from pico.evaluation.choose import choose_steps
from pico.expectations.suites import check_table
from pico.files import publishing, read_json, sha256_file, working_folder, write_json
from pico.spread import spread

if TYPE_CHECKING:
    from pico.evaluation.benchmarks import Benchmark

DATA = Path("data")
HELDOUT = "heldout"
"""The part of an evaluation that is no benchmark."""

Answers = dict[tuple[int, str], Path]
"""(step, part) -> the file with what the checkpoint said to it."""


@task
def choose(model: str, params: Params) -> list[Checkpoint]:
    """The checkpoints to be evaluated."""
    run_folder = DATA / "models" / params.suite.scale / model
    known = {checkpoint.step: checkpoint for checkpoint in checkpoints(run_folder)}
    if not known:
        raise PicoError(f"{model} has no checkpoint", where=str(run_folder), mend=f"dvc repro pretrain@{model}")
    return [known[step] for step in choose_steps(list(known), params.evaluation.checkpoints)]


@task
def build_requests(params: Params) -> "list[Benchmark]":
    """What every checkpoint is asked: the documents, and lm-eval's prompts for them."""
    from pico.evaluation.benchmarks import Benchmark  # lm-eval takes seconds to import

    evaluation = params.evaluation
    return [
        Benchmark(entry.name, DATA / "benchmarks", metric=entry.metric, limit=evaluation.limit, seed=evaluation.seed)
        for entry in params.benchmarks.tasks
    ]


@task
def ask(stage: Stage, chosen: list[Checkpoint], benchmarks: "list[Benchmark]", device: str, folder: Path) -> Answers:
    """Every part of every checkpoint, spread over processes; what an interrupted run left in `folder` is used."""
    from pico.evaluation.parts import evaluate_part

    parts = {HELDOUT: None} | {benchmark.name: benchmark.requests for benchmark in benchmarks}
    places = {
        (checkpoint.step, part): folder / f"{checkpoint.folder.name}-{part}.json"
        for checkpoint in chosen
        for part in parts
    }
    missing = [key for key, place in places.items() if not place.exists()]
    if len(missing) < len(places):
        stage.logger.info("Found %d of %d parts from an earlier run", len(places) - len(missing), len(places))
    # Absolute, because a worker of a lab or a cluster stands elsewhere.
    folders = {checkpoint.step: checkpoint.folder.resolve() for checkpoint in chosen}
    calls = [
        (folders[step], (DATA / "tokens").resolve(), device, parts[part], stage.params.evaluation.batch_size)
        for step, part in missing
    ]
    # A GPU is used from this process: Ray tasks would each want one of their own.
    with nullcontext() if device == "cuda" or not calls else stage.ray(), bar(stage, len(places)) as advance:
        advance(len(places) - len(missing))
        for index, result in spread(evaluate_part, calls):
            write_json(places[missing[index]], result)
            advance(1)
    return places


@task
def score(
    params: Params, chosen: list[Checkpoint], benchmarks: "list[Benchmark]", answers: Answers
) -> list[dict[str, Any]]:
    """The entries of results.json, by step."""
    return [
        {
            "step": checkpoint.step,
            "tokens": checkpoint.trainer["tokens"],
            "heldout": read_json(answers[checkpoint.step, HELDOUT]),
            "benchmarks": {
                benchmark.name: benchmark.results(
                    read_json(answers[checkpoint.step, benchmark.name]), bootstrap=params.evaluation.bootstrap
                )
                for benchmark in benchmarks
            },
        }
        for checkpoint in chosen
    ]


def identity(params: Params, chosen: list[Checkpoint], benchmarks: "list[Benchmark]", device: str) -> dict[str, Any]:
    """All that the answers depend on: weights, held-out text, tokenizer, requests, settings, code."""
    import pico.evaluation
    import pico.model

    code = [Path(package.__file__ or "").parent for package in (pico.evaluation, pico.model)]
    tokens = DATA / "tokens"
    data = [*sorted((tokens / HELDOUT).glob("*.parquet")), *sorted((tokens / "tokenizer").glob("*.json"))]
    return {
        "checkpoints": {checkpoint.step: read_json(checkpoint.folder / MANIFEST) for checkpoint in chosen},
        "data": {str(path): sha256_file(path) for path in data},
        "requests": {benchmark.name: benchmark.requests for benchmark in benchmarks},
        "settings": params.evaluation.model_dump(),
        "device": device,
        "code": [sha256_file(path) for folder in code for path in sorted(folder.rglob("*.py"))],
    }


@contextmanager
def bar(stage: Stage, total: int) -> "Iterator[Any]":
    """Gives `advance(parts)`: a bar on a terminal, a line now and then elsewhere, and Prefect's progress artifact."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    done, announced = 0, 0
    terminal = sys.stderr.isatty()
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TextColumn("parts"), TimeRemainingColumn())
    with (
        Progress(*columns, console=Console(stderr=True), transient=True, disable=not terminal) as shown,
        stage.progress(f"benchmark-progress-{stage.model}", f"Evaluation of {stage.model}") as update,
    ):
        line = shown.add_task(f"benchmark {stage.model}", total=total)

        def advance(parts: int) -> None:
            nonlocal done, announced
            done += parts
            shown.update(line, completed=done)
            update(done / max(total, 1))
            if not terminal and (quarter := 4 * done // max(total, 1)) > announced:
                announced = quarter
                stage.logger.info("%s: %d of %d parts evaluated", stage.model, done, total)

        yield advance


def table(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last checkpoint's figures, one row a domain and a benchmark."""
    last = results[-1]
    heldout = [
        {
            "task": f"bits per byte, {domain}",
            "value": round(entry["bits_per_byte"], 4),
            "stderr": None,
            "chance": None,
            "n": entry["tokens"],
        }
        for domain, entry in last[HELDOUT].items()
    ]
    return heldout + [
        {
            "task": f"{name} ({entry['metric']})",
            "value": round(entry["value"], 4),
            "stderr": None if entry["stderr"] is None else round(entry["stderr"], 4),
            "chance": round(entry["chance"], 4),
            "n": entry["n"],
        }
        for name, entry in last["benchmarks"].items()
    ]


def results_table(results: list[dict[str, Any]]) -> pa.Table:
    """Returns results.json as the table that the user's own suites are about: one row a figure.

    `step`, `tokens`, `task` (`heldout/DOMAIN` or a benchmark), `measure` (`bits_per_byte`, `value`, `stderr`, ...) and
    `value`, which is null where there is none.
    """
    rows = [
        {"step": entry["step"], "tokens": entry["tokens"], "task": task, "measure": measure, "value": value}
        for entry in results
        for task, figures in [
            *((f"{HELDOUT}/{domain}", figures) for domain, figures in entry[HELDOUT].items()),
            *entry["benchmarks"].items(),
        ]
        for measure, value in figures.items()
        if value is None or isinstance(value, int | float)
    ]
    columns = [pa.int64(), pa.int64(), pa.string(), pa.string(), pa.float64()]
    return pa.Table.from_pylist(rows, pa.schema(list(zip(rows[0], columns, strict=True))))


def benchmark(stage: Stage) -> None:
    """Asks, scores, and publishes `data/evaluation/SCALE/MODEL/results.json`."""
    model, params = stage.model, stage.params
    if model is None:
        raise PicoError("stage benchmark runs once per model", mend="give one: python -m flows.benchmark --model NAME")
    suites = params.gates.suites
    own = [suite.file for suite in suites if suite.on == "results"]
    watched_by_dvc("benchmark", own, "params.yaml: gates.suites")
    device = stage.device()
    chosen = choose(model, params)
    benchmarks = build_requests(params)
    answers = working_folder("benchmark", identity(params, chosen, benchmarks, device))
    results = score(params, chosen, benchmarks, ask(stage, chosen, benchmarks, device, answers))
    pages = answers / "data_docs"
    check_table("results", [results_table(results)], suites, pages, model)
    with publishing(DATA / "evaluation" / params.suite.scale / model) as folder:
        write_json(folder / "results.json", results)
        if pages.exists():
            shutil.copytree(pages, folder / "data_docs")
    shutil.rmtree(answers)
    stage.table(f"benchmark-{model}", table(results), f"Evaluation of {model} at step {results[-1]['step']}")


if __name__ == "__main__":
    run("benchmark", benchmark)
