"""Curves of a run while it trains: for `dvc plots`, TensorBoard and Weights & Biases. Nothing is ever made from them.

Each takes the points that events carry: `step`, `learning_rate`, `train_loss`, `gradient_norm`, `heldout_loss`. On a
resume all are given again from step 1, so that a curve has no gaps and no step twice.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from pico.config import Live
from pico.errors import PicoError

FOLDER = Path("live")
"""DVCLive's files: one folder a model."""


class Sink(Protocol):
    """A place where points go."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Takes the values of a step."""

    def sync(self) -> None:
        """Makes all that was logged visible."""

    def close(self) -> None:
        """Ends it."""


@contextmanager
def watched(
    settings: Live, model: str, scale: str, history: Callable[[Path], list[dict[str, Any]]], root: Path = Path()
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Gives a function that takes the events of a run and passes their points on to all that `settings` name.

    history: returns the points in the file of a loss curve, from step 1 on.
    """
    with ExitStack() as stack:
        sinks: list[Sink] = []
        if settings.dvclive:
            sinks.append(_DvcLive(root / FOLDER, model))
        if settings.tensorboard:
            sinks.append(_TensorBoard(root / "runs" / "tensorboard" / scale / model))
        if settings.wandb:
            sinks.append(_WeightsAndBiases(settings.wandb, model, scale, root / "runs"))
        for sink in sinks:
            stack.callback(sink.close)

        last = 0

        def show(event: dict[str, Any]) -> None:
            nonlocal last
            points = event.get("points", [])
            if "start" in event:
                points = history(Path(event["curve"]))[: event["start"]]
            points = [point for point in points if point["step"] > last]  # after a dead worker, steps come again
            last = points[-1]["step"] if points else last
            for sink in sinks:
                for point in points:
                    sink.log(point["step"], _values(point))
                if points:
                    sink.sync()

        yield show


def _values(point: dict[str, Any]) -> dict[str, float]:
    """Returns the values of a point by the name of their curve, but for those that cannot be drawn."""
    names = ("train_loss", "heldout_loss", "learning_rate", "gradient_norm")
    values = {name: point[name] for name in names}
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


class _DvcLive:
    """`dvc plots show -x step live/*/plots/metrics/train_loss.tsv` draws them, also while training runs.

    No dvc.yaml is written for them: below a folder that git ignores, DVC would not look at it.
    """

    def __init__(self, folder: Path, model: str) -> None:
        from dvclive import Live as Writer
        from scmrepo.exceptions import SCMError

        try:
            self._live = Writer(dir=str(folder / model), dvcyaml=None, save_dvc_exp=False, report=None)
        except SCMError as error:
            raise PicoError(f"DVCLive cannot work here: {error}", where="params.yaml: live.dvclive",
                            mend="make a first commit with git, or set live.dvclive: false") from error  # fmt: skip

    def log(self, step: int, values: dict[str, float]) -> None:
        self._live.step = step
        for name, value in values.items():
            self._live.log_metric(name, value)

    def sync(self) -> None:
        self._live.make_summary()

    def close(self) -> None:
        self._live.end()


class _TensorBoard:
    """`tensorboard --logdir runs/tensorboard` shows them."""

    def __init__(self, folder: Path) -> None:
        import shutil

        from tensorboardX import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder))

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def sync(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run of the project that live.wandb names. The only part that may speak to the network, as W&B is set to."""

    def __init__(self, project: str, model: str, scale: str, folder: Path) -> None:
        try:
            import wandb
        except ImportError:
            raise PicoError("live.wandb is set, but wandb is not installed", where="params.yaml: live.wandb",
                            mend="pip install 'pico-lab[wandb]', or set live.wandb: null") from None  # fmt: skip
        folder.mkdir(exist_ok=True)  # else wandb would write to the system's folder for temporary files
        self._run = wandb.init(project=project, name=model, group=scale, dir=str(folder))

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def sync(self) -> None:
        """W&B does so by itself."""

    def close(self) -> None:
        self._run.finish()
