"""Stage `benchmark`: held-out perplexity and benchmarks of chosen checkpoints of one model."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from prefect import task

from flows.stage import Stage, run
from pico.checkpoint import Checkpoint, checkpoints
from pico.config import Params
from pico.errors import PicoError
from pico.evaluation.parts import answers_identity, choose_steps, evaluate_part
from pico.expectations.suites import check_table
from pico.files import publishing, read_json, working_folder, write_json
from pico.spread import spread

if TYPE_CHECKING:
    from pico.evaluation.benchmarks import Benchmark

DATA = Path("data")
HELDOUT = "heldout"
"""The part of an evaluation that is no benchmark: perplexity."""

Answers = dict[tuple[int, str], Path]
"""(step, part) -> the file with the checkpoint's answers."""


@task
def choose(model: str, params: Params) -> list[Checkpoint]:
    """Returns the checkpoints to be evaluated."""
    run_folder = DATA / "models" / params.suite.scale / model
    known = {checkpoint.step: checkpoint for checkpoint in checkpoints(run_folder)}
    if not known:
        raise PicoError(f"{model} has no checkpoint", where=str(run_folder), mend=f"dvc repro pretrain@{model}")
    return [known[step] for step in choose_steps(list(known), params.evaluation.checkpoints)]


@task
def build_requests(params: Params) -> "list[Benchmark]":
    """Builds the requests to every checkpoint: the documents, and lm-eval's prompts for them."""
    from pico.evaluation.benchmarks import Benchmark  # lm-eval takes seconds to import

    evaluation = params.evaluation
    return [
        Benchmark(entry.name, DATA / "benchmarks", metric=entry.metric, limit=evaluation.limit, seed=evaluation.seed)
        for entry in params.benchmarks.tasks
    ]


@task
def ask(stage: Stage, chosen: list[Checkpoint], benchmarks: "list[Benchmark]", device: str, folder: Path) -> Answers:
    """Evaluates every part of every checkpoint, spread over processes. Uses what an earlier run left in `folder`."""
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
    with stage.ray(bool(calls) and device != "cuda"), stage.progress(len(places), "parts") as bar:
        bar.update(len(places) - len(missing))
        for index, result in spread(evaluate_part, calls):
            write_json(places[missing[index]], result)
            bar.advance()
    return places


@task
def score(
    params: Params, chosen: list[Checkpoint], benchmarks: "list[Benchmark]", answers: Answers
) -> list[dict[str, Any]]:
    """Returns the entries of results.json, by step."""
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


def table(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the last checkpoint's figures: one row a domain and a benchmark."""
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
    """Evaluates, scores, and publishes `data/evaluation/SCALE/MODEL/results.json`."""
    model, params = stage.model, stage.params
    suites = params.gates.suites
    stage.require_deps([suite.file for suite in suites if suite.on == "results"], "gates.suites")
    device = stage.device()
    chosen = choose(model, params)
    benchmarks = build_requests(params)
    requests = {benchmark.name: benchmark.requests for benchmark in benchmarks}
    batch_size = params.evaluation.batch_size
    about = answers_identity(chosen, DATA / "tokens", requests, device=device, batch_size=batch_size)
    answers = working_folder("benchmark", about)
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
    run("benchmark", benchmark, per_model=True)
