"""The training loop: plain torch, the same in one process and in many.

Step t means "after t updates". At each step, in this order: the schedule's checkpoint, or a rescue one if it is time;
then update t, with the batch that is a function of (seed, t); then, where due, the held-out loss.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pico.errors import PicoError
from pico.model import Decoder
from pico.model.flops import training_flops_per_token
from pico.train.batches import Batches, micro_batches
from pico.train.capture import capture_splits, chosen_layers
from pico.train.checkpoints import Keeper, State, exclusive
from pico.train.curve import Point, first_nonfinite
from pico.train.optimizers import optimizer_tensors
from pico.train.parallel import restore, share
from pico.train.prefetch import prefetched
from pico.train.spec import RunSpec
from pico.train.spikes import SpikeDetector
from pico.train.step import Update, Updates
from pico.train.world import World, reproducible
from pico.watch.hardware import peak_flops

FLUSH_SECONDS = 0.5
"""How often a single process reads losses back from the device, checks and records them."""
FLUSH_STEPS = 10
"""The same for several processes, in steps, because all of them must do it at the same one."""

Tell = Callable[[dict[str, Any]], None]
"""Receives what is worth showing: {"step", "loss", ...}, {"capturing"} or {"warning"}; see pico.watch.progress."""

Dynamics = tuple[Mapping[str, Mapping[str, Tensor]], Mapping[str, Mapping[str, str]]]
"""The files of learning_dynamics/ by name, and their metadata; see pico.train.capture.capture_splits."""


def train(
    spec: RunSpec,
    tokens: Path,
    work: Path,
    identity: Mapping[str, Any],
    *,
    world: World | None = None,
    stop: Callable[[], bool] = lambda: False,
    tell: Tell = lambda event: None,
) -> bool:
    """Trains, or goes on training, the run in `work`. Returns False when `stop` asked to leave, True when done.

    Leaves work/model/checkpoints and work/curve.jsonl. Raises PicoError for a non-finite loss or gradient (see
    training.on_nonfinite), and where `work` holds another run. With several processes, each calls this within an
    initialised torch.distributed group; the first one writes.
    """
    world = world or World()
    lock = exclusive(work) if world.rank == 0 else nullcontext()
    with lock, reproducible(spec.training.threads_per_worker, spec.seed, compiled=spec.training.compile):
        run = _Run(spec, tokens, work, identity, world, stop, tell)
        try:
            return run.run()
        finally:
            run.keeper.wait()  # the lock is held for as long as anything is written


class _Run:
    """One process's part of one run."""

    def __init__(
        self,
        spec: RunSpec,
        tokens: Path,
        work: Path,
        identity: Mapping[str, Any],
        world: World,
        stop: Callable[[], bool],
        tell: Tell,
    ) -> None:
        self.spec, self.world, self.stop, self.tell = spec, world, stop, tell
        self.first = world.rank == 0
        self.batches = Batches(spec, tokens)
        decoder = Decoder(spec.decoder, seed=spec.seed)
        chosen_layers(decoder, spec.learning_dynamics.layers)  # refuses a wrong name now
        if spec.training.compile:
            for layer in decoder.layers:
                layer.compile()
        self.shared = share(decoder, world, spec.training.sharding)
        with self._eager():
            self.shared.settle()
        self.tokens_per_step = spec.training.batch_size * self.batches.seq_len
        self.updates = Updates(spec, self.shared, self.tokens_per_step, self._precision)
        self.keeper = Keeper(work, spec, identity, self.tokens_per_step)
        self.spikes = SpikeDetector()
        self.peak = peak_flops(world.device, spec.training.precision).flops if self.first else 0.0
        """Of one process, FLOP/s."""
        self.flops_per_token = training_flops_per_token(spec.decoder, self.batches.seq_len)
        self.pending: list[Update] = []
        self.skipped = 0
        """Updates left out in a row, because they were not finite."""
        self.flushed = self.saved = time.monotonic()
        self.shown = 0

    def run(self) -> bool:
        training = self.spec.training
        start = self._resume()
        schedule = set(self.keeper.schedule)
        with self._batches(start or 0) as batches:
            for step in range(start or 0, training.steps + 1):
                if step in schedule:
                    if step != start:
                        self._save(step)
                elif self._time_for_rescue(step):
                    self._save_rescue(step)
                if step == training.steps:
                    break
                if self._asked_to_stop(step):
                    if step not in schedule:
                        self._save_rescue(step)
                    return False
                self.pending.append(self.updates.take(step, next(batches)))
                after = step + 1
                due = after % training.eval_every == 0 or after == training.steps
                if due or self._time_to_flush(after):
                    self._flush(heldout=due)
        if self.first:
            self.keeper.wait()
            self.keeper.drop_older_optimizers(training.steps)
        return True

    def _batches(self, start: int) -> AbstractContextManager[Iterator[Tensor]]:
        """This process's share of each batch from update `start` on."""
        mine = self.world.share(self.spec.training.batch_size)
        steps = self.spec.training.steps
        return prefetched(lambda update: self.batches.of_update(update, mine), start, steps, self.world.device)

    def _resume(self) -> int | None:
        """Restores the last good checkpoint; returns its step, or None to start afresh."""
        point = None
        if self.first:
            point = self.keeper.resume_point(lambda message: self.tell({"warning": message}))
            self.keeper.forget_after(point.step if point else None)
        point = self.world.from_first(point)  # so that all processes go on from the same one
        if point:
            where = str(point.folder)
            weights = {name: one for name, one in point.model().items() if name not in self.shared.aliases}
            restore(self.shared.parameters, weights, self.shared, where=where)
            state = optimizer_tensors(self.shared.parameters, self.updates.optimizer)
            restore(state, point.optimizer(), self.shared, where=where)
            self.keeper.restore_rng(point)
        self.shown = point.step if point else 0
        if self.first:
            for earlier in self.keeper.curve.read():
                self.spikes.baseline(earlier.train_loss)
            self.tell(
                {
                    "start": self.shown,
                    "steps": self.spec.training.steps,
                    "tokens_per_step": self.tokens_per_step,
                    "curve": str(self.keeper.curve.path.resolve()),
                }
            )
        return point.step if point else None

    def _time_to_flush(self, step: int) -> bool:
        if self.world.size > 1:
            return step % FLUSH_STEPS == 0
        return time.monotonic() - self.flushed > FLUSH_SECONDS

    def _flush(self, *, heldout: bool = False) -> None:
        """Reads back, checks and records the updates since the last flush, the last with the held-out loss."""
        self.keeper.check()
        if not self.pending:
            return
        values = torch.stack([torch.stack((one.loss, one.norm)) for one in self.pending]).tolist()
        trained = time.monotonic()
        heldout_loss = self._heldout_loss() if heldout else None
        points = [
            Point(one.step, one.learning_rate, loss, norm, heldout_loss if one is self.pending[-1] else None)
            for one, (loss, norm) in zip(self.pending, values, strict=True)
        ]
        self.pending = []
        self._look_at(points)
        if not self.first:
            return
        self.keeper.curve.append(points)
        last = points[-1]
        rate_now = (last.step - self.shown) * self.tokens_per_step / max(trained - self.flushed, 1e-9)
        event = {"step": last.step, "loss": last.train_loss, "learning_rate": last.learning_rate,
                 "tokens_per_second": rate_now, "points": [astuple(point) for point in points],
                 "mfu": rate_now * self.flops_per_token / (self.peak * self.world.size)}  # fmt: skip
        self.tell(event if heldout_loss is None else {**event, "heldout_loss": heldout_loss})
        self.flushed, self.shown = time.monotonic(), last.step

    def _look_at(self, points: list[Point]) -> None:
        """Warns of spikes. Saves batches that gave no finite loss or gradient, and raises where training must stop."""
        for point in points:
            error = first_nonfinite([point])
            self.skipped = self.skipped + 1 if error else 0
            if error:
                if self.first:
                    saved = self.keeper.keep_batch(point.step, self.batches.of_update(point.step - 1))
                    error = PicoError(error.what, where=f"its batch: {saved}", mend=error.mend)
                if self.spec.training.on_nonfinite == "stop" or self.skipped >= 10:
                    raise error
                if self.first:
                    self.tell({"warning": f"update left out: {error.what}; {error.where}"})
            elif self.first and (before := self.spikes.baseline(point.train_loss)) is not None:
                self.tell({"warning": f"loss spike at step {point.step}: {point.train_loss:.3f} after {before:.3f}"})

    def _asked_to_stop(self, step: int) -> bool:
        """Whether to leave before this step's update: all processes at the same step."""
        if self.world.size == 1:
            return self.stop()
        return step % FLUSH_STEPS == 0 and self._first_says(self.stop())

    def _time_for_rescue(self, step: int) -> bool:
        """Whether a rescue checkpoint is due: where the model is sharded, all processes take part in it, and ask."""
        due = time.monotonic() - self.saved > self.spec.checkpoints.rescue_seconds
        if self.world.size == 1 or self.spec.training.sharding == "none":
            return self.first and due
        return step % FLUSH_STEPS == 0 and self._first_says(due)

    def _first_says(self, what: bool) -> bool:
        return bool(self.world.sum(torch.tensor(float(self.first and what), device=self.world.device)))

    def _state(self) -> State:
        """A copy of weights, moments and random state. All processes of a sharded model take part."""
        self.keeper.wait()  # so that there is only one copy at a time
        shared, parameters = self.shared, self.shared.parameters
        moments = optimizer_tensors(parameters, self.updates.optimizer)
        return State(
            model=shared.weights(),
            optimizer=shared.gathered({key: (key.rpartition(".")[0], tensor) for key, tensor in moments.items()}),
            rng=torch.get_rng_state().numpy().tobytes(),
        )

    def _save(self, step: int) -> None:
        """The schedule's checkpoint, with learning dynamics, which the first process captures while the others wait."""
        self._flush()
        state = self._state()
        if self.first:
            dynamics, metadata = self._capture(step, state)
            self.keeper.save(step, state, dynamics, metadata)
        self.saved = self.flushed = time.monotonic()

    def _capture(self, step: int, state: State) -> Dynamics:
        if not self.spec.learning_dynamics.layers:
            return {}, {}
        self.tell({"capturing": step})
        return capture_splits(self.shared.whole_decoder(state.model), self.batches, step, self._eager)

    def _save_rescue(self, step: int) -> None:
        self._flush()
        state = self._state()
        if self.first:
            self.keeper.save_rescue(step, state)
        self.saved = self.flushed = time.monotonic()

    @torch.no_grad()
    def _heldout_loss(self) -> float:
        """Mean loss over all held-out tokens, nats a token; micro-batches are dealt out to the processes in turn."""
        rows = self.batches.all_heldout()
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        parts = rows.split(self.spec.training.micro_batch_size)
        for turn in range(0, len(parts), self.world.size):
            # In the last turn some may have none left: they take part, as a sharded model needs, with one that is not
            # theirs to count.
            number = turn + self.world.rank
            part = parts[number] if number < len(parts) else parts[0]
            for inputs, targets in micro_batches(part, len(part), self.world.device):
                with self._precision():
                    loss = self.shared.loss(inputs, targets)
                total += loss if number < len(parts) else 0.0
        return float(self.world.sum(total)) / (len(rows) * self.batches.seq_len)

    def _precision(self) -> AbstractContextManager:
        """fp32 as it is, or bf16 by autocast over fp32 weights."""
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.spec.training.precision == "bf16")

    def _eager(self) -> AbstractContextManager:
        """The same, with compiled layers run uncompiled, where hooks work."""
        if not self.spec.training.compile:
            return self._precision()
        stack = ExitStack()
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(self._precision())
        return stack
