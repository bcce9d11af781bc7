"""Stage `analyze`: metrics of every checkpoint of one model: of its states, and of how it behaves."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from prefect import task

from flows.stage import Stage, run
from pico.analysis.engine.choices import other_runs
from pico.analysis.engine.plugins import read_metric_files
from pico.analysis.engine.run import analysis_folder, analyze_run, find_checkpoints
from pico.analysis.engine.table import read_table
from pico.behaviour.measure import BehaviourTask, behaviour_identity, measure_checkpoint
from pico.behaviour.subject import BehaviourSettings
from pico.checkpoint import Checkpoint
from pico.config import Analysis, Behaviour
from pico.expectations.suites import check_table
from pico.files import publish

DATA = Path("data")
TOKENS = DATA / "tokens"
SIDECARS = Path("runs/analyze/sidecars")


choose = task(name="choose")(find_checkpoints)


@task
def measure(stage: Stage, source: Path, model: str, folder: Path, choices: dict[str, Any]) -> list[Path]:
    """Measures every layer of every checkpoint, spread over processes. Keeps what an interrupted run had finished."""
    if kept := len(list(folder.glob("step_*.parquet"))):
        stage.logger.info("Found %d analysed checkpoints from an earlier run", kept)
    settings, behaviour = stage.params.analysis, stage.params.behaviour
    last = find_checkpoints(source)[-1]

    def of_behaviour(checkpoint: Checkpoint) -> partial | None:
        if not behaviour.metrics:
            return None
        targets = {"last": last.folder} if checkpoint.folder != last.folder else {}
        task = BehaviourTask(
            model,
            checkpoint.folder,
            TOKENS,
            targets,
            settings=behaviour_settings(behaviour),
            device=choices["device"],
            files=choices["files"],
        )
        return partial(measure_checkpoint, task)

    with stage.ray(), stage.progress(None, "layers") as bar:
        return analyze_run(
            source,
            model,
            settings.metrics,
            settings.components,
            folder,
            **choices,
            more=of_behaviour,
            sidecars=SIDECARS / source.parent.name,
            report=bar.update,
        )


def behaviour_settings(settings: Behaviour) -> BehaviourSettings:
    """Returns the library's settings, with those that params.yaml has."""
    return BehaviourSettings(**settings.model_dump())


def _choices(stage: Stage, source: Path, settings: Analysis) -> dict[str, Any]:
    """Returns the options of the analysis. Another run is a model of the same suite, or the folder of one."""
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
    """Averages each metric over layers, heads and splits: one row a module or circuit and type of data."""
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
    """Returns the mean to four figures; None where the metric does not apply."""
    return float(f"{sum(values) / len(values):.4g}") if values else None


def analyze(stage: Stage) -> None:
    """Measures into a working folder and publishes it as `data/analysis/SCALE/MODEL/`."""
    model, params = stage.model, stage.params
    suites = params.gates.suites
    stage.require_deps([suite.file for suite in suites if suite.on == "metrics"], "gates.suites")
    source = DATA / "models" / params.suite.scale / model
    target = DATA / "analysis" / params.suite.scale / model
    found = choose(source)
    stage.require_deps(params.analysis.files, "analysis.files")
    settings, choices = params.analysis, _choices(stage, source, params.analysis)
    about = None
    if params.behaviour.metrics:
        about = behaviour_identity(TOKENS, behaviour_settings(params.behaviour), choices["files"])
    folder = analysis_folder(source, model, settings.metrics, settings.components, **choices, more=about)
    measure(stage, source, model, folder, choices)
    rows = summarize(folder, found[-1].step)
    check_table("metrics", [read_table(folder)], suites, folder / "data_docs", model)
    publish(folder, target)
    stage.table(f"analyze-{model}", rows, f"Mean over layers, heads and splits at step {found[-1].step} of {model}")
    stage.link(f"analyze-data-{model}", target, "One Parquet file a checkpoint")


if __name__ == "__main__":
    run("analyze", analyze, per_model=True)
