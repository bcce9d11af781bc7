"""One run from settings to finished checkpoints: its folder, its lock, its watcher, and a clean end on a signal."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pico.files import working_folder
from pico.identity import identity
from pico.train.checkpoints import exclusive
from pico.train.distributed import STOP, train_on_ray, train_worker
from pico.train.recipe import Recipe
from pico.train.spec import RunSpec, run_identity
from pico.watch.events import EventReader

STOP_SECONDS = 120.0
"""Time for a run that is asked to stop to save a rescue checkpoint."""

Show = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Run:
    """A run and its place; see `open_run`."""

    spec: RunSpec
    tokens: Path
    recipe: type[Recipe]
    identity: Mapping[str, Any]
    """Settings and data that its checkpoints must agree with."""
    folder: Path
    """Its working folder: `model` is what is published, `curve.jsonl` the loss curve."""


def open_run(spec: RunSpec, tokens: Path, runs: Path = Path("runs"), recipe: type[Recipe] = Recipe) -> Run:
    """Returns the run of these settings, tokens and recipe. Its folder follows from them, and from the code.

    The tokens are read once, for their hashes.
    """
    same = run_identity(spec, tokens, recipe.identity())
    folder = working_folder("pretrain", {"run": same, **identity("pico.train.loop")}, root=runs)
    return Run(spec, tokens, recipe, same, folder)


def pretrain(
    spec: RunSpec,
    tokens: Path,
    *,
    runs: Path = Path("runs"),
    recipe: type[Recipe] = Recipe,
    on_ray: bool = False,
    show: Show = lambda event: None,
) -> Path:
    """Trains a model, or goes on where an interrupted run stopped; as `train_run`. Returns the run's folder."""
    run = open_run(spec, tokens, runs, recipe)
    train_run(run, on_ray=on_ray, show=show)
    return run.folder


def train_run(run: Run, *, on_ray: bool = False, show: Show = lambda event: None) -> None:
    """Trains the model, or goes on where an interrupted run stopped.

    Events for a display go to `show`, in this thread. On Ray when `on_ray` (then Ray must be connected), else in this
    process; the outcome is the same. After an exception in this thread, a KeyboardInterrupt for instance, a rescue
    checkpoint is saved before it goes on.
    """
    stop = run.folder / STOP
    result: dict[str, Any] = {}
    # Not Thread.join: an exception from a signal handler within it marks a running thread as ended (Python up to 3.12).
    over = threading.Event()

    def body() -> None:
        try:
            result["finished"] = train_on_ray(run) if on_ray else train_worker(run, run.spec.training.device)
        except BaseException as error:
            result["error"] = error
        finally:
            over.set()

    with exclusive(run.folder, "driver.lock"):  # two of them would take each other's signals
        stop.unlink(missing_ok=True)
        events = EventReader(run.folder / "progress.jsonl")
        threading.Thread(target=body, name="pretrain", daemon=True).start()
        try:
            while not over.wait(0.2):
                for event in events.read():
                    show(event)
        except BaseException:
            stop.touch()
            over.wait(STOP_SECONDS)
            raise
        for event in events.read():
            show(event)
    if "error" in result:
        raise result["error"]
    if not result["finished"]:
        raise InterruptedError("training was asked to stop by another process; a rescue checkpoint was saved")
