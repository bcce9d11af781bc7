"""Curves of a run while it trains: for `dvc plots`, TensorBoard and Weights & Biases. Nothing is ever made from them.

Each takes the points that events carry: `step`, `learning_rate`, `train_loss`, `gradient_norm`, `heldout_loss`. On a
resume all are given again from step 1, so that a curve has no gaps and no step twice.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pico.config import Live
from pico.errors import PicoError

FOLDER = Path("live")
"""DVCLive's files: one folder a model."""

Points = list[tuple[int, dict[str, float]]]
"""Steps with their values."""
Log = Callable[[Points], None]
"""Takes points, and makes them visible."""


@contextmanager
def watched(
    settings: Live, model: str, scale: str, history: Callable[[Path], list[dict[str, Any]]], root: Path = Path()
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Gives a function that takes the events of a run and passes their points on to all that `settings` name.

    history: returns the points in the file of a loss curve, from step 1 on.
    """
    with ExitStack() as stack:
        logs: list[Log] = []
        if settings.dvclive:
            logs.append(_dvclive(stack, root / FOLDER / model))
        if settings.tensorboard:
            logs.append(_tensorboard(stack, root / "runs" / "tensorboard" / scale / model))
        if settings.wandb:
            logs.append(_weights_and_biases(stack, settings.wandb, model, scale, root / "runs"))
        last = 0

        def show(event: dict[str, Any]) -> None:
            nonlocal last
            points = event.get("points", [])
            if "start" in event:
                points = history(Path(event["curve"]))[: event["start"]]
            points = [point for point in points if point["step"] > last]  # after a dead worker, steps come again
            last = points[-1]["step"] if points else last
            for log in logs if points else ():
                log([(point["step"], _values(point)) for point in points])

        yield show


def _values(point: dict[str, Any]) -> dict[str, float]:
    """Returns the values of a point by the name of their curve, but for those that cannot be drawn."""
    names = ("train_loss", "heldout_loss", "learning_rate", "gradient_norm")
    return {name: point[name] for name in names if point[name] is not None and math.isfinite(point[name])}


def _dvclive(stack: ExitStack, folder: Path) -> Log:
    """`dvc plots show -x step live/*/plots/metrics/train_loss.tsv` draws them, also while training runs.

    No dvc.yaml is written for them: below a folder that git ignores, DVC would not look at it.
    """
    from dvclive import Live as Writer
    from scmrepo.exceptions import SCMError

    try:
        live = Writer(dir=str(folder), dvcyaml=None, save_dvc_exp=False, report=None)
    except SCMError as error:
        raise PicoError(f"DVCLive cannot work here: {error}", where="params.yaml: live.dvclive",
                        mend="make a first commit with git, or set live.dvclive: false") from error  # fmt: skip
    stack.callback(live.end)

    def log(points: Points) -> None:
        for step, values in points:
            live.step = step
            for name, value in values.items():
                live.log_metric(name, value)
        live.make_summary()

    return log


def _tensorboard(stack: ExitStack, folder: Path) -> Log:
    """`tensorboard --logdir runs/tensorboard` shows them."""
    import shutil

    from tensorboardX import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    writer = SummaryWriter(str(folder))
    stack.callback(writer.close)

    def log(points: Points) -> None:
        for step, values in points:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        writer.flush()

    return log


def _weights_and_biases(stack: ExitStack, project: str, model: str, scale: str, folder: Path) -> Log:
    """A run of the project that live.wandb names. The only part that may speak to the network, as W&B is set to."""
    try:
        import wandb
    except ImportError:
        raise PicoError("live.wandb is set, but wandb is not installed", where="params.yaml: live.wandb",
                        mend="pip install 'pico-lab[wandb]', or set live.wandb: null") from None  # fmt: skip
    folder.mkdir(exist_ok=True)  # else wandb would write to the system's folder for temporary files
    run = wandb.init(project=project, name=model, group=scale, dir=str(folder))
    stack.callback(run.finish)

    def log(points: Points) -> None:
        for step, values in points:
            run.log(values, step=step)

    return log
