"""Stage `pretrain`: one model of the suite, with checkpoints and learning dynamics."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import task

from flows.stage import Stage, run
from pico.checkpoint import MANIFEST, checkpoints, verify
from pico.errors import PicoError
from pico.files import publish, read_json, sha256_file, write_json
from pico.train.curve import Curve, write_csv
from pico.train.run import Run, open_run, train_run
from pico.train.spec import run_spec
from pico.watch.events import Utilization
from pico.watch.live import watched
from pico.watch.progress import Display

TOKENS = Path("data/tokens")
PUBLISHED = "published.json"
"""In a run's folder: `contents` of what it has published."""


@task(name="train")
def train(stage: Stage, run: Run) -> None:
    """Trains on Ray, or goes on where an interrupted run stopped."""
    spec = run.spec
    utilization = Utilization(spec.decoder, spec.training)
    with (
        stage.ray(),
        stage.progress(spec.training.steps, "steps") as bar,
        watched(stage.params.live, spec.model, stage.params.suite.scale, history) as watch,
    ):
        display = Display(bar, warn=stage.logger.warning)

        def show(event: dict[str, Any]) -> None:
            display.show(utilization(event))
            watch(event)

        train_run(run, on_ray=True, show=show)


def history(path: Path) -> list[dict[str, Any]]:
    """Returns the points of a loss curve as events carry them."""
    return [asdict(point) for point in Curve(path).read()]


@task(name="publish")
def publish_run(stage: Stage, run: Run, out: Path) -> None:
    """Puts the loss curve and the checkpoints in their places."""
    work = run.folder
    curve = Curve(work / "curve.jsonl").read()
    tokens_per_step = checkpoints(work / "model")[-1].trainer["tokens_per_step"]
    write_csv(curve, tokens_per_step, work / "model" / "training.csv")
    write_json(work / PUBLISHED, contents(work / "model"))
    publish(work / "model", out)
    shutil.rmtree(work / "rescue", ignore_errors=True)
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
    stage.table(f"pretrain-{run.spec.model}-curve", rows, f"Loss of {run.spec.model}, nats a token")


def contents(model: Path) -> dict[str, str]:
    """Returns the sha256 of the files that name all of a model's bytes: checkpoints' manifests and the loss curve."""
    files = [*model.glob(f"checkpoints/*/{MANIFEST}"), model / "training.csv"]
    return {path.relative_to(model).as_posix(): sha256_file(path) for path in sorted(files)}


def unrecorded(name: str, work: Path, out: Path) -> bool:
    """Returns whether this very run published `out`, but DVC was ended before it had recorded that.

    Then it is not made again. Where DVC has recorded it, somebody asked for it to be made anew (`dvc repro --force`).
    """
    published = work / PUBLISHED
    if not (published.exists() and (out / "training.csv").exists() and read_json(published) == contents(out)):
        return False
    from dvc.repo import Repo

    with Repo() as repo:  # not `dvc status`: it would wait for the lock of the `dvc repro` that runs this
        (stage,) = repo.stage.collect(name)
        return any(one.status() for one in stage.outs)


def pretrain(stage: Stage) -> None:
    """Publishes `data/models/SCALE/MODEL/`."""
    run = open_run(run_spec(stage.params, stage.model), TOKENS)
    out = Path("data/models") / stage.params.suite.scale / stage.model
    if unrecorded(f"pretrain@{stage.model}", run.folder, out):
        try:
            for checkpoint in checkpoints(out):
                verify(checkpoint.folder)
        except PicoError as error:
            stage.logger.warning(f"{error.what}: the model is trained again")
        else:
            stage.logger.info(f"{out} was finished by a run that was ended before DVC recorded it: it is kept")
            return
    train(stage, run)
    publish_run(stage, run, out)


if __name__ == "__main__":
    run("pretrain", pretrain, per_model=True)
