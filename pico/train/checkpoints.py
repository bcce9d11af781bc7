"""Checkpoints of a run while it works, and the point from which it goes on after an interruption.

Below runs/pretrain/<fingerprint>/:

    model/checkpoints/step_*    the schedule's, with learning dynamics; becomes data/models/MODEL
    rescue/step_*               the last two of those written between, every checkpoints.rescue_seconds
    curve.jsonl                 the loss curve
    nonfinite/step_*            batches whose loss or gradient was not finite
    progress.jsonl              what the progress bar shows: rates and times, never read back
    lock, driver.lock           held by the process that writes here, and by the one that it works for
"""

import base64
import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from pico.checkpoint import STEP_GLOB, Checkpoint, drop_optimizer, step_name, verify, write_checkpoint
from pico.errors import PicoError
from pico.files import write_atomic
from pico.train.curve import Curve
from pico.train.spec import RunSpec, differing_keys

RESCUES_KEPT = 2
LOCK_SECONDS = 60.0
"""Time for a process that is on its way out, as after a kill of its parent."""

Dynamics = tuple[Mapping[str, Mapping[str, Tensor]], Mapping[str, Mapping[str, str]]]
"""The files of learning_dynamics/ by name, and their metadata; see pico.train.capture.capture_splits."""


@dataclass(frozen=True)
class State:
    """A copy, on the CPU, of all that a resume needs."""

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    """The content of optimizer.safetensors: the optimizers' state as `<parameter>.<kind>`, and where there are any, the
    recipe's tensors as `recipe.<name>` and weights that are not those of model.safetensors as `parameters.<name>`."""
    rng: bytes
    """The random state of torch in the first process."""
    recipe: Mapping[str, Any]
    """Plain values, from `Recipe.values`."""


class CheckpointManager:
    """The folder of one run, in which checkpoints are written while training goes on, and one is found to resume from.

    `identity` (see pico.train.spec) is stored in every checkpoint and compared on resume.
    """

    def __init__(self, work: Path, spec: RunSpec, identity: Mapping[str, Any], tokens_per_step: int) -> None:
        self.model = work / "model"
        self.rescue = work / "rescue"
        self.curve = Curve(work / "curve.jsonl")
        self.spec = spec
        self.identity = dict(identity)
        self.tokens_per_step = tokens_per_step
        self.nonfinite = work / "nonfinite"
        self.writer = BackgroundWriter()
        self.schedule = checkpoint_steps(spec.training.steps, spec.checkpoints.every)

    def save(self, step: int, state: State, dynamics: Dynamics) -> None:
        """Writes the schedule's checkpoint of `step`, and drops the optimizer's state from those before it.

        It works in the background, like `save_rescue`: an error is raised by a later call, or by `writer.wait`.
        """

        def write() -> None:
            self._write(self.model / "checkpoints" / step_name(step), step, state, dynamics)
            self.drop_older_optimizers(step)

        self.writer.submit(write)

    def save_rescue(self, step: int, state: State) -> None:
        """Writes a rescue checkpoint and removes all but the last two."""

        def write() -> None:
            self._write(self.rescue / step_name(step), step, state)
            for old in sorted(self.rescue.glob("step_*"))[:-RESCUES_KEPT]:
                shutil.rmtree(old)

        self.writer.submit(write)

    def save_batch(self, step: int, batch: tuple[Tensor, ...]) -> Path:
        """Saves the batch of the update that led to `step`, for inspection: `input_ids`, and `tensor_1`, ... if any."""
        path = self.nonfinite / f"{step_name(step)}.safetensors"
        path.parent.mkdir(exist_ok=True)
        tensors = {f"tensor_{number}" if number else "input_ids": one.contiguous() for number, one in enumerate(batch)}
        write_atomic(path, save(tensors, metadata={"step": str(step)}))
        return path

    def drop_older_optimizers(self, step: int) -> None:
        """Leaves the optimizer's state in the schedule's checkpoint of `step` alone."""
        for earlier in self.schedule:
            folder = self.model / "checkpoints" / step_name(earlier)
            if earlier < step and (folder / "optimizer.safetensors").exists():
                drop_optimizer(Checkpoint(folder))

    def resume_point(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """Returns the last good checkpoint with an optimizer's state and all before it whole; None to start afresh.

        Files that a kill left half-written are removed; a damaged checkpoint is named in a warning and passed over.
        Raises PicoError where a checkpoint is of other settings or data, naming the keys that differ.
        """
        for folder in (self.model, self.rescue):
            for stale in sorted(folder.rglob(".*.partial"), reverse=True) if folder.exists() else ():
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        covered = len(self.curve.read())
        point: Checkpoint | None = None
        sound = True  # whether every checkpoint of the schedule so far is whole
        scheduled = set(self.schedule)
        for folder in self._folders():
            step = Checkpoint(folder).step
            due = [earlier for earlier in self.schedule if earlier < step]
            if not sound or any(not (self.model / "checkpoints" / step_name(earlier)).exists() for earlier in due):
                warn(f"{folder} cannot be used, because an earlier checkpoint is missing or damaged")
                break
            try:
                checkpoint = verify(folder)
            except PicoError as error:
                warn(f"damaged checkpoint passed over: {error.what}")
                sound = step not in scheduled
                continue
            self._same_run(checkpoint)
            if (folder / "optimizer.safetensors").exists():
                if step <= covered:
                    point = checkpoint
                else:
                    warn(f"{folder} passed over: the loss curve ends at step {covered}")
        return point

    def restore_rng(self, checkpoint: Checkpoint) -> None:
        """Sets torch's random state to that of a checkpoint."""
        state = np.frombuffer(base64.b64decode(checkpoint.trainer["rng"]["torch"]), dtype=np.uint8)
        torch.set_rng_state(torch.from_numpy(state.copy()))

    def discard_after(self, step: int | None) -> None:
        """Removes all that lies after the resume point (all, for None): it is made again, the same."""
        for folder in self._folders():
            if step is None or Checkpoint(folder).step > step:
                shutil.rmtree(folder)
        self.curve.restart(step or 0)

    def _folders(self) -> list[Path]:
        """Returns checkpoint folders of both kinds by step, those without a manifest included."""
        found = [*self.model.glob(f"checkpoints/{STEP_GLOB}"), *self.rescue.glob(STEP_GLOB)]
        return sorted(found, key=lambda folder: (folder.name, folder.parent.name))

    def _same_run(self, checkpoint: Checkpoint) -> None:
        if differing := differing_keys(self.identity, checkpoint.trainer["identity"]):
            raise PicoError(
                "this checkpoint is of another run:\n" + "\n".join(f"  - {line}" for line in differing),
                where=str(checkpoint.folder),
                mend="restore those settings or data, or delete this run's folder to start afresh",
            )

    def _write(self, folder: Path, step: int, state: State, dynamics: Dynamics = ({}, {})) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        trainer = {
            "format": 1,
            "step": step,
            "tokens": step * self.tokens_per_step,
            "tokens_per_step": self.tokens_per_step,
            "next_update": step,  # the data position: the batch of update t is a function of (seed, t)
            "rng": {"seed": self.spec.seed, "torch": base64.b64encode(state.rng).decode()},
            "identity": self.identity,
        }
        if state.recipe:
            trainer["recipe"] = dict(state.recipe)
        write_checkpoint(
            folder,
            model=state.model,
            config=self.spec.decoder.to_dict(),
            trainer=trainer,
            optimizer=state.optimizer,
            dynamics=dynamics[0],
            dynamics_metadata=dynamics[1],
        )


class BackgroundWriter:
    """A thread that does one piece of work at a time, in order. An error is raised by a later call, once."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Begins `work` when the work before it is done."""
        self.wait()
        self._pending = self._executor.submit(work)

    def check(self) -> None:
        """Raises the error of the work, if there has been one by now."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Returns when all is done. Raises the error of the work."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def checkpoint_steps(steps: int, every: int) -> list[int]:
    """Returns 0, 1, 2, 4, ... up to `every`, then the multiples of `every`, and the last step; ascending.

    Step t is the model after t updates. Models change fastest at the start, so that is where checkpoints lie densest
    (as Pythia's, arXiv 2304.01373).
    """
    powers = [1 << exponent for exponent in range(every.bit_length()) if 1 << exponent <= every]
    kept = {0, *powers, *range(every, steps + 1, every), steps}
    return sorted(step for step in kept if step <= steps)


@contextmanager
def exclusive(work: Path, name: str = "lock") -> Iterator[None]:
    """Holds a lock of the run, which ends with the process, however it dies. Raises PicoError where it is taken."""
    deadline = time.monotonic() + LOCK_SECONDS
    with open(work / name, "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise PicoError("another process is training this very run", where=str(work),
                                    mend="wait for it, or end it") from None  # fmt: skip
                time.sleep(0.2)
        yield
