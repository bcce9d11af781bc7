"""Stage `pretrain`: one model of the suite, with checkpoints and learning dynamics."""

import shutil
from pathlib import Path
from typing import Any

from prefect import task

from flows.stage import Stage, run
from pico.checkpoint import checkpoints
from pico.files import publish
from pico.train.curve import Curve, write_csv
from pico.train.live import watched
from pico.train.progress import Display
from pico.train.run import pretrain as pretrain_model
from pico.train.spec import RunSpec, run_spec

TOKENS = Path("data/tokens")


@task(name="train")
def train(stage: Stage, spec: RunSpec) -> Path:
    """Trains on Ray, or goes on where an interrupted run stopped; returns the run's folder."""
    with (
        stage.ray(),
        stage.progress(f"pretrain-{spec.model}", f"Training {spec.model}") as update,
        Display(spec.model, update=update, warn=stage.logger.warning) as display,
        watched(stage.params.live, spec.model, stage.params.suite.scale) as watch,
    ):

        def show(event: dict[str, Any]) -> None:
            display.show(event)
            watch(event)

        return pretrain_model(spec, TOKENS, on_ray=True, show=show)


@task(name="publish")
def publish_run(stage: Stage, spec: RunSpec, work: Path) -> None:
    """Puts the loss curve and the checkpoints in their places."""
    curve = Curve(work / "curve.jsonl").read()
    tokens_per_step = checkpoints(work / "model")[-1].trainer["tokens_per_step"]
    write_csv(curve, tokens_per_step, work / "model" / "training.csv")
    publish(work / "model", Path("data/models") / stage.params.suite.scale / spec.model)
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


def pretrain(stage: Stage) -> None:
    """The whole stage."""
    if stage.model is None:
        raise ValueError("stage pretrain needs --model")
    spec = run_spec(stage.params, stage.model)
    publish_run(stage, spec, train(stage, spec))


if __name__ == "__main__":
    run("pretrain", pretrain)
