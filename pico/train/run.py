"""One run from settings to finished checkpoints: its folder, its lock, its watcher, and a clean end on a signal."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pico.files import working_folder
from pico.train.checkpoints import exclusive
from pico.train.loop import train
from pico.train.spec import RunSpec, code_identity, identity
from pico.train.world import World, choose_device
from pico.watch.events import EventReader, EventWriter

STOP_SECONDS = 120.0
"""How long a run that is asked to stop may take to save a rescue checkpoint."""

Show = Callable[[dict[str, Any]], None]


def run_folder(spec: RunSpec, tokens: Path, runs: Path = Path("runs")) -> Path:
    """Where this run is kept: a function of its settings, data and code."""
    return working_folder("pretrain", {"identity": identity(spec, tokens), "code": code_identity()}, root=runs)


def pretrain(
    spec: RunSpec,
    tokens: Path,
    *,
    runs: Path = Path("runs"),
    on_ray: bool = False,
    show: Show = lambda event: None,
) -> Path:
    """Trains the model, or goes on where an interrupted run stopped. Returns the run's folder.

    Events for a display go to `show`, in this thread. On Ray when `on_ray` (then Ray must be connected), else in this
    process; the outcome is the same. After an exception in this thread, a KeyboardInterrupt for instance, a rescue
    checkpoint is saved before it goes on. The folder's `model` is what is published, `curve.jsonl` the loss curve.
    """
    same = identity(spec, tokens)
    work = run_folder(spec, tokens, runs)
    with exclusive(work, "driver.lock"):  # two of them would take each other's signals
        return _watched(spec, tokens, work, same, on_ray, show)


def _watched(spec: RunSpec, tokens: Path, work: Path, same: Mapping[str, Any], on_ray: bool, show: Show) -> Path:
    stop = work / "stop"
    stop.unlink(missing_ok=True)
    follower = EventReader(work / "progress.jsonl")
    result: dict[str, Any] = {}
    # Not Thread.join: an exception from a signal handler within it marks a running thread as ended (Python up to 3.12).
    over = threading.Event()

    def body() -> None:
        try:
            if on_ray:
                from pico.train.distributed import train_on_ray

                result["finished"] = train_on_ray(spec, tokens, work, same)
            else:
                tell = EventWriter(work / "progress.jsonl")
                world = World(device=choose_device(spec.training.device))
                result["finished"] = train(spec, tokens, work, same, world=world, stop=stop.exists, tell=tell)
        except BaseException as error:
            result["error"] = error
        finally:
            over.set()

    threading.Thread(target=body, name="pretrain", daemon=True).start()
    try:
        while not over.wait(0.2):
            for event in follower.read():
                show(event)
    except BaseException:
        stop.touch()
        over.wait(STOP_SECONDS)
        raise
    for event in follower.read():
        show(event)
    if "error" in result:
        raise result["error"]
    if not result["finished"]:
        raise InterruptedError("training was asked to stop by another process; a rescue checkpoint was saved")
    return work
