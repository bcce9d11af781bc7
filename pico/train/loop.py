"""The training loop: plain torch, the same in one process and in many.

Step t means "after t updates". At each step, in this order: the schedule's checkpoint, or a rescue one if it is time;
then update t, with the batch that is a function of (seed, t); then, where due, the held-out loss.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pico.checkpoint import Checkpoint
from pico.errors import PicoError
from pico.train.batches import Batches, micro_batches, prefetched
from pico.train.capture import capture_splits, chosen_layers
from pico.train.checkpoints import CheckpointManager, Dynamics, State, exclusive
from pico.train.curve import Point, SpikeDetector, nonfinite
from pico.train.parallel import World, parallelize, reproducible
from pico.train.recipe import Recipe, decoder_of
from pico.train.spec import RunSpec
from pico.train.step import TrainStep, Update, restore, without_prefix

FLUSH_SECONDS = 0.5
"""Time after which a single process reads losses back from the device, checks and records them."""
FLUSH_STEPS = 10
"""The same for several processes, in steps, because all of them must do it at the same one."""

Stop = Callable[[], bool]
"""Returns whether training is to be left."""
Report = Callable[[dict[str, Any]], None]
"""Receives events to show: {"start", ...}, {"step", "loss", ...}, {"capturing"} or {"warning"}."""

PARAMETERS, RECIPE = "parameters.", "recipe."
"""Prefixes in optimizer.safetensors; see pico.train.checkpoints.State."""


def train(
    spec: RunSpec,
    tokens: Path,
    work: Path,
    identity: Mapping[str, Any],
    *,
    recipe: type[Recipe] = Recipe,
    world: World | None = None,
    stop: Stop = lambda: False,
    report: Report = lambda event: None,
) -> bool:
    """Trains, or goes on training, the run in `work`. Returns False when `stop` asked to leave, True when done.

    Leaves work/model/checkpoints and work/curve.jsonl. `recipe` is the class that says what is trained and how. Raises
    PicoError for a non-finite loss or gradient (see training.on_nonfinite), and where `work` holds another run. With
    several processes, each calls this within an initialised torch.distributed group; the first one writes.
    """
    world = world or World()
    lock = exclusive(work) if world.rank == 0 else nullcontext()
    with lock, reproducible(spec.training.threads_per_worker, spec.seed, compiled=spec.training.compile):
        batches = Batches(spec, tokens)
        checkpoints = CheckpointManager(work, spec, identity, spec.training.batch_size * batches.seq_len)
        try:
            return _Run(recipe(spec, batches), batches, world, checkpoints, stop, report).run()
        finally:
            checkpoints.writer.wait()  # the lock is held for as long as anything is written


class _Run:
    """One process's part of one run."""

    def __init__(
        self, recipe: Recipe, batches: Batches, world: World, checkpoints: CheckpointManager, stop: Stop, report: Report
    ) -> None:
        self.recipe, self.world, self.checkpoints, self.stop, self.report = recipe, world, checkpoints, stop, report
        self.batches, self.spec = batches, batches.spec
        spec = batches.spec
        self.first = world.rank == 0
        model = recipe.build_model()
        decoder = decoder_of(model)
        chosen_layers(decoder, spec.learning_dynamics.layers)  # refuses a wrong name now
        if spec.training.compile:
            for layer in decoder.layers:
                layer.compile()
        self.model = parallelize(model, recipe, world, spec.training.sharding)
        self.shard = world.shard(spec.training.batch_size)
        if world.size > 1 and not self.model.sharded:
            examples = recipe.batch(0, self.shard)
            with self._eager():
                self.model.warm_up(next(micro_batches(examples, spec.training.micro_batch_size, world.device)))
        self.tokens_per_step = checkpoints.tokens_per_step
        self.train_step = TrainStep(recipe, self.model, self.tokens_per_step, self._precision)
        recipe.begin(self.train_step.state)
        if self.model.sharded and recipe.tensors():
            raise PicoError(f"{type(recipe).__name__} has tensors of its own, which sharded training cannot save",
                            where="params.yaml: training.sharding", mend="set training.sharding: none")  # fmt: skip
        self.spikes = SpikeDetector()
        self.pending: list[Update] = []
        self.skipped = 0
        """Updates left out in a row, because they were not finite."""
        self.flushed = self.saved = time.monotonic()
        self.shown = 0

    def run(self) -> bool:
        training = self.spec.training
        start = self._resume()
        schedule = set(self.checkpoints.schedule)

        def batch(update: int) -> tuple[Tensor, ...]:
            return self.recipe.batch(update, self.shard)

        with prefetched(batch, start or 0, training.steps, self.world.device) as batches:
            for step in range(start or 0, training.steps + 1):
                if step in schedule:
                    if step != start:
                        self._save(step)
                elif self._time_for_rescue(step):
                    self._save(step, rescue=True)
                if step == training.steps:
                    break
                if self._agreed(step, self.stop):
                    if step not in schedule:
                        self._save(step, rescue=True)
                    return False
                self.pending.append(self.train_step(step, next(batches)))
                after = step + 1
                due = after % training.eval_every == 0 or after == training.steps
                waited = time.monotonic() - self.flushed > FLUSH_SECONDS
                if due or (after % FLUSH_STEPS == 0 if self.world.size > 1 else waited):
                    self._flush(heldout=due)
        if self.first:
            self.checkpoints.writer.wait()
            self.checkpoints.drop_older_optimizers(training.steps)
        return True

    def _resume(self) -> int | None:
        """Restores the last good checkpoint; returns its step, or None to start afresh."""
        point = None
        if self.first:
            point = self.checkpoints.resume_point(lambda message: self.report({"warning": message}))
            self.checkpoints.discard_after(point.step if point else None)
        point = self.world.broadcast(point)  # so that all processes go on from the same one
        if point:
            self._restore(point)
        self.shown = point.step if point else 0
        if self.first:
            for earlier in self.checkpoints.curve.read():
                self.spikes.baseline(earlier.train_loss)
            self.report(
                {
                    "start": self.shown,
                    "steps": self.spec.training.steps,
                    "tokens_per_step": self.tokens_per_step,
                    "curve": str(self.checkpoints.curve.path.resolve()),
                }
            )
        return point.step if point else None

    def _restore(self, point: Checkpoint) -> None:
        where, saved = str(point.folder), point.optimizer()
        own, extra = without_prefix(saved, PARAMETERS), without_prefix(saved, RECIPE)
        weights = own or {name: one for name, one in point.model().items() if name not in self.model.aliases}
        restore(self.model.parameters, weights, self.model, where=where)
        state = {key: one for key, one in saved.items() if not key.startswith((PARAMETERS, RECIPE))}
        self.train_step.restore_optimizers(state, where=where)
        restore(self.recipe.tensors(), extra, None, where=where)
        if values := point.trainer.get("recipe"):
            self.recipe.load_values(values)
        self.checkpoints.restore_rng(point)

    def _flush(self, *, heldout: bool = False) -> None:
        """Reads back, checks and records the updates since the last flush, the last with the held-out loss."""
        self.checkpoints.writer.check()
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
        self._check(points)
        if not self.first:
            return
        self.checkpoints.curve.append(points)
        last = points[-1]
        rate_now = (last.step - self.shown) * self.tokens_per_step / max(trained - self.flushed, 1e-9)
        event = {"step": last.step, "loss": last.train_loss, "learning_rate": last.learning_rate,
                 "tokens_per_second": rate_now, "points": [asdict(point) for point in points]}  # fmt: skip
        self.report(event if heldout_loss is None else {**event, "heldout_loss": heldout_loss})
        self.flushed, self.shown = time.monotonic(), last.step

    def _check(self, points: list[Point]) -> None:
        """Warns of spikes. Saves batches that gave no finite loss or gradient, and raises where training must stop."""
        for point in points:
            error = nonfinite(point)
            self.skipped = self.skipped + 1 if error else 0
            if error:
                if self.first:
                    everything = slice(0, self.spec.training.batch_size)
                    saved = self.checkpoints.save_batch(point.step, self.recipe.batch(point.step - 1, everything))
                    error = PicoError(error.what, where=f"its batch: {saved}", mend=error.mend)
                if self.spec.training.on_nonfinite == "stop" or self.skipped >= 10:
                    raise error
                if self.first:
                    self.report({"warning": f"update left out: {error.what}; {error.where}"})
            elif self.first and (before := self.spikes.baseline(point.train_loss)) is not None:
                self.report({"warning": f"loss spike at step {point.step}: {point.train_loss:.3f} after {before:.3f}"})

    def _time_for_rescue(self, step: int) -> bool:
        """Returns whether a rescue checkpoint is due. Where the model is sharded, all processes take part, and ask."""
        due = time.monotonic() - self.saved > self.spec.checkpoints.rescue_seconds
        return self._agreed(step, lambda: due) if self.model.sharded else self.first and due

    def _agreed(self, step: int, ask: Callable[[], bool]) -> bool:
        """Returns the first process's answer: all processes at the same step."""
        if self.world.size == 1:
            return ask()
        if step % FLUSH_STEPS:
            return False
        return bool(self.world.all_reduce(torch.tensor(float(ask() and self.first), device=self.world.device)))

    def _state(self) -> State:
        """Copies weights, optimizer state and random state. All processes of a sharded model take part."""
        self.checkpoints.writer.wait()  # so that there is only one copy at a time
        state = self.train_step.optimizer_tensors()
        optimizer = self.model.full_tensors({key: (key.rpartition(".")[0], one) for key, one in state.items()})
        weights: Mapping[str, Tensor] = self.model.full_weights()
        exported = self.recipe.export(weights) if self.first else weights
        if exported is not weights:
            optimizer |= {PARAMETERS + name: weights[name] for name in self.model.parameters}
        if self.first:
            own = self.recipe.tensors()
            optimizer |= {RECIPE + name: one.detach().to("cpu", copy=True) for name, one in own.items()}
        return State(exported, optimizer, torch.get_rng_state().numpy().tobytes(), dict(self.recipe.values()))

    def _save(self, step: int, *, rescue: bool = False) -> None:
        """Saves the schedule's checkpoint, with learning dynamics that the first process captures, or a rescue one."""
        self._flush()
        state = self._state()
        if self.first and rescue:
            self.checkpoints.save_rescue(step, state)
        elif self.first:
            self.checkpoints.save(step, state, self._capture(step, state))
        self.saved = self.flushed = time.monotonic()

    def _capture(self, step: int, state: State) -> Dynamics:
        if not self.spec.learning_dynamics.layers:
            return {}, {}
        self.report({"capturing": step})
        exported = any(key.startswith(PARAMETERS) for key in state.optimizer)
        decoder = self.model.full_decoder(self.spec.decoder, state.model, exported=exported)
        return capture_splits(decoder, self.batches, step, self._eager)

    @torch.no_grad()
    def _heldout_loss(self) -> float:
        """Returns the mean loss over all held-out tokens, nats a token; micro-batches go to the processes in turn."""
        rows = self.batches.all_heldout()
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        parts = rows.split(self.spec.training.micro_batch_size)
        for turn in range(0, len(parts), self.world.size):
            # In the last turn some may have none left: they take part, as a sharded model needs, with one that is not
            # theirs to count.
            number = turn + self.world.rank
            part = parts[number] if number < len(parts) else parts[0]
            for (rows_here,) in micro_batches((part,), len(part), self.world.device):
                with self._precision():
                    loss = self.model.forward("heldout_loss", rows_here)
                total += loss if number < len(parts) else 0.0
        return float(self.world.all_reduce(total)) / (len(rows) * self.batches.seq_len)

    def _precision(self) -> AbstractContextManager:
        """Returns the context of a forward pass: fp32 as it is, or bf16 by autocast over fp32 weights."""
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.spec.training.precision == "bf16")

    @contextmanager
    def _eager(self) -> Iterator[None]:
        """Surrounds a forward pass likewise, with compiled layers run uncompiled, where hooks work."""
        compiled = self.spec.training.compile
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext(), self._precision():
            yield
