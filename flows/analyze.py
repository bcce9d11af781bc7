"""Stage `analyze`: metrics of every checkpoint of one model: of its states, and of how it behaves."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from prefect import task

from flows.stage import Stage, run, watched_by_dvc
from pico.analysis.engine.comparisons import other_runs
from pico.analysis.engine.plugins import read_metric_files
from pico.analysis.engine.run import analysis_folder, analyze_run, find_checkpoints
from pico.analysis.engine.table import read_table
from pico.behaviour.checkpoint import BehaviourTask, identity, measure_checkpoint
from pico.behaviour.settings import BehaviourSettings
from pico.checkpoint import Checkpoint
from pico.config import Analysis, Behaviour
from pico.errors import PicoError
from pico.expectations.suites import check_table
from pico.files import publish

DATA = Path("data")
TOKENS = DATA / "tokens"
SIDECARS = Path("runs/analyze/sidecars")


@task
def choose(source: Path) -> list[Checkpoint]:
    """The checkpoints to be analysed: all finished ones."""
    return find_checkpoints(source)


@task
def measure(stage: Stage, source: Path, model: str, folder: Path, choices: dict[str, Any]) -> list[Path]:
    """Every layer of every checkpoint, spread over processes; what was finished before an interruption is kept."""
    if kept := len(list(folder.glob("step_*.parquet"))):
        stage.logger.info("Found %d analysed checkpoints from an earlier run", kept)
    settings, behaviour = stage.params.analysis, stage.params.behaviour
    last = find_checkpoints(source)[-1]

    def of_behaviour(checkpoint: Checkpoint) -> partial | None:
        if not behaviour.metrics:
            return None
        targets = {"last": last.folder} if checkpoint.folder != last.folder else {}
        task = BehaviourTask(
            model, checkpoint.folder, TOKENS, targets, settings=behaviour_settings(behaviour), device=choices["device"]
        )
        return partial(measure_checkpoint, task)

    with stage.ray(), _bar(stage, model) as report:
        return analyze_run(
            source,
            model,
            settings.metrics,
            settings.components,
            folder,
            **choices,
            more=of_behaviour,
            sidecars=SIDECARS / source.parent.name,
            report=report,
        )


def behaviour_settings(settings: Behaviour) -> BehaviourSettings:
    """The settings of params.yaml; the library's own for the rest."""
    return BehaviourSettings(
        metrics=tuple(settings.metrics),
        seed=settings.seed,
        heldout_rows=settings.heldout_rows,
        memorised_rows=settings.memorised_rows,
        landscape_rows=settings.landscape_rows,
    )


def _choices(stage: Stage, source: Path, settings: Analysis) -> dict[str, Any]:
    """What is measured and compared with what; another run is a model of the same suite, or the folder of one."""
    watched_by_dvc("analyze", settings.files, "params.yaml: analysis.files")
    siblings = {name: source.parent / name for name in other_runs(settings.compare)}
    return {
        "layers": settings.layers,
        "compare": settings.compare,
        "layer_pairs": settings.layer_pairs,
        "others": {name: folder if folder.is_dir() else Path(name) for name, folder in siblings.items()},
        "device": stage.device(),
        "data_types": settings.data_types,
        "files": read_metric_files(settings.files),
    }


@task
def summarize(folder: Path, step: int) -> list[dict[str, Any]]:
    """Mean of each metric over layers, heads and splits: one row a module or circuit and type of data."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in read_table(folder).to_pylist():
        if row["step"] == step and row["value"] is not None and row["target_layer"] is None:
            key = (json.loads(row["params"]).get("module", row["component"]), row["data_type"])
            values.setdefault(key, {}).setdefault(row["metric"], []).append(row["value"])
    metrics = sorted({metric for found in values.values() for metric in found})
    return [
        {"of": of, "data": data_type} | {metric: _mean(found.get(metric)) for metric in metrics}
        for (of, data_type), found in sorted(values.items())
    ]


def _mean(values: list[float] | None) -> float | None:
    """To four figures; None where the metric does not apply."""
    return float(f"{sum(values) / len(values):.4g}") if values else None


@contextmanager
def _bar(stage: Stage, model: str) -> Iterator[Callable[[int, int], None]]:
    """Gives `report(done, total)`: a bar on a terminal, lines elsewhere, and Prefect's progress artifact."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f} layers/s" if task.speed else "")

    announced, terminal = 0, sys.stderr.isatty()
    columns = (
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TextColumn("layers"),
        Rate(),
        TimeRemainingColumn(),
    )
    with (
        Progress(*columns, console=Console(stderr=True), transient=True, disable=not terminal) as shown,
        stage.progress(f"analyze-progress-{model}", f"Analysis of {model}") as update,
    ):
        line = shown.add_task(f"analyze {model}", total=None)

        def report(done: int, total: int) -> None:
            nonlocal announced
            shown.update(line, completed=done, total=total)
            update(done / total)
            if not terminal and (quarter := 4 * done // total) > announced:
                announced = quarter
                stage.logger.info("%s: %d of %d layers measured", model, done, total)

        yield report


def analyze(stage: Stage) -> None:
    """Measures into a working folder and publishes it as `data/analysis/SCALE/MODEL/`."""
    model, params = stage.model, stage.params
    if model is None:
        raise PicoError("stage analyze runs once per model", mend="give one: python -m flows.analyze --model NAME")
    suites = params.gates.suites
    own = [suite.file for suite in suites if suite.on == "metrics"]
    watched_by_dvc("analyze", own, "params.yaml: gates.suites")
    source = DATA / "models" / params.suite.scale / model
    target = DATA / "analysis" / params.suite.scale / model
    found = choose(source)
    settings, choices = params.analysis, _choices(stage, source, params.analysis)
    about = identity(TOKENS, behaviour_settings(params.behaviour)) if params.behaviour.metrics else None
    folder = analysis_folder(source, model, settings.metrics, settings.components, **choices, more=about)
    measure(stage, source, model, folder, choices)
    rows = summarize(folder, found[-1].step)
    check_table("metrics", [read_table(folder)], suites, folder / "data_docs", model)
    publish(folder, target)
    stage.table(f"analyze-{model}", rows, f"Mean over layers, heads and splits at step {found[-1].step} of {model}")
    stage.link(f"analyze-data-{model}", target, "One Parquet file a checkpoint")


if __name__ == "__main__":
    run("analyze", analyze)
