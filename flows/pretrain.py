"""Stage `pretrain`: one model of the suite, with checkpoints and learning dynamics."""

import shutil
from pathlib import Path
from typing import Any

from prefect import task

from flows.stage import Stage, run
from pico.checkpoint import MANIFEST, checkpoints, verify
from pico.errors import PicoError
from pico.files import publish, read_json, sha256_file, write_json
from pico.train.curve import Curve, write_csv
from pico.train.run import pretrain as pretrain_model
from pico.train.run import run_folder
from pico.train.spec import RunSpec, run_spec
from pico.watch.live import watched
from pico.watch.progress import Display

TOKENS = Path("data/tokens")
PUBLISHED = "published.json"
"""In a run's folder: `contents` of what it has published."""


@task(name="train")
def train(stage: Stage, spec: RunSpec) -> Path:
    """Trains on Ray, or goes on where an interrupted run stopped; returns the run's folder."""
    with (
        stage.ray(),
        stage.progress(spec.training.steps, "steps") as bar,
        watched(stage.params.live, spec.model, stage.params.suite.scale) as watch,
    ):
        display = Display(bar, warn=stage.logger.warning)

        def show(event: dict[str, Any]) -> None:
            display.show(event)
            watch(event)

        return pretrain_model(spec, TOKENS, on_ray=True, show=show)


@task(name="publish")
def publish_run(stage: Stage, spec: RunSpec, work: Path, out: Path) -> None:
    """Puts the loss curve and the checkpoints in their places."""
    curve = Curve(work / "curve.jsonl").read()
    tokens_per_step = checkpoints(work / "model")[-1].trainer["tokens_per_step"]
    write_csv(curve, tokens_per_step, work / "model" / "training.csv")
    write_json(work / PUBLISHED, contents(work / "model"))
    publish(work / "model", out)
    shutil.rmtree(work / "rescue", ignore_errors=True)
    shutil.rmtree(work / "ray", ignore_errors=True)
    rows = [
        {
            "step": point.step,
            "train loss": round(point.train_loss, 4),
            "held-out loss": round(point.heldout_loss, 4),
            "learning rate": point.learning_rate,
        }
        for point in curve
        if point.heldout_loss is not None
    ]
    stage.table(f"pretrain-{spec.model}-curve", rows, f"Loss of {spec.model}, nats a token")


def contents(model: Path) -> dict[str, str]:
    """sha256 of what names all of a model's bytes: its checkpoints' manifests, and its loss curve."""
    files = [*model.glob(f"checkpoints/*/{MANIFEST}"), model / "training.csv"]
    return {path.relative_to(model).as_posix(): sha256_file(path) for path in sorted(files)}


def unrecorded(name: str, work: Path, out: Path) -> bool:
    """Whether `out` is what this very run published, but DVC was ended before it had recorded that.

    Then it is not made again. Where DVC has recorded it, somebody asked for it to be made anew (`dvc repro --force`).
    """
    if not (work / PUBLISHED).exists() or not (out / "training.csv").exists():
        return False
    if read_json(work / PUBLISHED) != contents(out):
        return False
    from dvc.repo import Repo

    with Repo() as repo:  # not `dvc status`: it would wait for the lock of the `dvc repro` that runs this
        (stage,) = repo.stage.collect(name)
        return any(one.status() for one in stage.outs)


def pretrain(stage: Stage) -> None:
    """The whole stage."""
    spec = run_spec(stage.params, stage.model)
    out = Path("data/models") / stage.params.suite.scale / spec.model
    if unrecorded(f"pretrain@{spec.model}", run_folder(spec, TOKENS), out):
        try:
            for checkpoint in checkpoints(out):
                verify(checkpoint.folder)
        except PicoError as error:
            stage.logger.warning(f"{error.what}: the model is trained again")
        else:
            stage.logger.info(f"{out} was finished by a run that was ended before DVC recorded it: it is kept")
            return
    publish_run(stage, spec, train(stage, spec), out)


if __name__ == "__main__":
    run("pretrain", pretrain, per_model=True)
