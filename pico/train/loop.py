"""The training loop: plain torch, the same in one process and in many.

Step t means "after t updates". At each step, in this order: the schedule's checkpoint, or a rescue one if it is time;
then update t, with the batch that is a function of (seed, t); then, where due, the held-out loss.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pico.model import Decoder
from pico.train.batches import Batches, micro_batches
from pico.train.capture import activation_metadata, capture, chosen_layers
from pico.train.curve import Point, check_finite
from pico.train.keep import Keeper, exclusive
from pico.train.optimizer import make_optimizer
from pico.train.schedules import learning_rate
from pico.train.spec import RunSpec
from pico.train.world import World, reproducible

FLUSH_SECONDS = 0.5
"""How often a single process reads losses back from the device, checks and records them."""
FLUSH_STEPS = 10
"""The same for several processes, in steps, because all of them must do it at the same one."""

Tell = Callable[[dict[str, Any]], None]
"""Receives what is worth showing: {"step", "loss", ...} or {"warning"}; see pico.train.progress."""


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

    Leaves work/model/checkpoints and work/curve.jsonl. Raises PicoError for a non-finite loss or gradient, and where
    `work` holds another run. With several processes, each calls this within an initialised torch.distributed group;
    the first one writes.
    """
    world = world or World()
    lock = exclusive(work) if world.rank == 0 else nullcontext()
    with lock, reproducible(spec.training.threads_per_worker, spec.seed, compiled=spec.training.compile):
        return _Run(spec, tokens, work, identity, world, stop, tell).run()


class _Loss(nn.Module):
    """The sum of the losses of a micro-batch as a forward pass, which is what DistributedDataParallel can wrap."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        return self.decoder.loss(input_ids, targets, "sum")


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
        self.decoder = Decoder(spec.decoder, seed=spec.seed).to(world.device)
        chosen_layers(self.decoder, spec.learning_dynamics.layers)  # refuses a wrong name now
        if spec.training.compile:
            for layer in self.decoder.layers:
                layer.compile()
        self.optimizer = make_optimizer(self.decoder, spec.optimizer)
        self.tokens_per_step = spec.training.batch_size * self.batches.seq_len
        self.keeper = Keeper(work, spec, identity, self.tokens_per_step)
        self.pending: list[tuple[int, float, Tensor, Tensor]] = []
        # Becomes 1 with the first gradient that is not finite; the fused optimiser then leaves the weights alone.
        # It stays on the device, so that the host need not wait for every step's gradient.
        self.broken = torch.zeros((), device=world.device)
        self.flushed = self.saved = time.monotonic()
        self.shown = 0

    def run(self) -> bool:
        training = self.spec.training
        start = self._resume()
        model = self._distributed()
        schedule = set(self.keeper.schedule)
        for step in range(start or 0, training.steps + 1):
            if step in schedule:
                if step != start:
                    self._save(step)
            elif self.first and time.monotonic() - self.saved > self.spec.checkpoints.rescue_seconds:
                self._save_rescue(step)
            if step == training.steps:
                break
            if self._asked_to_stop(step):
                if self.first and step not in schedule:
                    self._save_rescue(step)
                return False
            self._update(step, model)
            after = step + 1
            due = after % training.eval_every == 0 or after == training.steps
            if due or self._time_to_flush(after):
                self._flush(self._heldout_loss() if due else None)
        if self.first:
            self.keeper.drop_older_optimizers(training.steps)
        return True

    def _resume(self) -> int | None:
        """Restores the last good checkpoint; returns its step, or None to start afresh."""
        point = None
        if self.first:
            point = self.keeper.resume_point(lambda message: self.tell({"warning": message}))
            self.keeper.forget_after(point.step if point else None)
        point = self.world.from_first(point)  # so that all processes go on from the same one
        if point:
            self.keeper.restore(point, self.decoder, self.optimizer)
        self.shown = point.step if point else 0
        if self.first:
            self.tell({"start": self.shown, "steps": self.spec.training.steps, "tokens_per_step": self.tokens_per_step})
        return point.step if point else None

    def _distributed(self) -> nn.Module:
        """The module whose backward pass averages gradients over the processes."""
        if self.world.size == 1:
            return _Loss(self.decoder)
        from torch.nn.parallel import DistributedDataParallel

        devices = [self.world.device.index] if self.world.device.type == "cuda" else None
        return DistributedDataParallel(
            _Loss(self.decoder), device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def _update(self, update: int, model: nn.Module) -> None:
        """Takes one optimiser step. All tokens of the global batch weigh the same, whatever the split."""
        training, spec = self.spec.training, self.spec
        rows = self.batches.of_update(update, self.world.share(training.batch_size))
        parts = list(micro_batches(rows, training.micro_batch_size, self.world.device))
        loss = torch.zeros((), device=self.world.device)
        for number, (inputs, targets) in enumerate(parts, start=1):
            last = number == len(parts)
            # Gradients are exchanged once an update, with the last part's backward pass.
            quiet = nullcontext() if last or self.world.size == 1 else model.no_sync()  # type: ignore[operator]
            with quiet:
                with self._precision():
                    part = model(inputs, targets) / self.tokens_per_step
                (part * self.world.size).backward()  # the exchange averages over processes; we want their sum
            loss += part.detach()
        self.world.sum(loss)
        parameters = list(self.decoder.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.broken = torch.maximum(self.broken, (~torch.isfinite(norm + loss)).float())
        if training.gradient_clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, training.gradient_clip, norm)
        rate = learning_rate(update, steps=training.steps, peak=spec.optimizer.lr, schedule=spec.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.found_inf = self.broken  # type: ignore[attr-defined]  # torch.amp's own way to skip a fused step
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.pending.append((update + 1, rate, loss, norm))

    def _time_to_flush(self, step: int) -> bool:
        if self.world.size > 1:
            return step % FLUSH_STEPS == 0
        return time.monotonic() - self.flushed > FLUSH_SECONDS

    def _flush(self, heldout_loss: float | None = None) -> None:
        """Reads back, checks and records the updates since the last flush; `heldout_loss` belongs to the last one."""
        if not self.pending:
            return
        values = torch.stack([torch.stack((loss, norm)) for _, _, loss, norm in self.pending]).tolist()
        points = [
            Point(step, rate, loss, norm, heldout_loss if step == self.pending[-1][0] else None)
            for (step, rate, _, _), (loss, norm) in zip(self.pending, values, strict=True)
        ]
        self.pending = []
        check_finite(points)
        if not self.first:
            return
        self.keeper.curve.append(points)
        now, last = time.monotonic(), points[-1]
        rate_now = (last.step - self.shown) * self.tokens_per_step / max(now - self.flushed, 1e-9)
        event = {"step": last.step, "loss": last.train_loss, "learning_rate": last.learning_rate,
                 "tokens_per_second": rate_now}  # fmt: skip
        self.tell(event if heldout_loss is None else {**event, "heldout_loss": heldout_loss})
        self.flushed, self.shown = now, last.step

    def _asked_to_stop(self, step: int) -> bool:
        """Whether to leave before this step's update: all processes at the same step."""
        if self.world.size == 1:
            return self.stop()
        if step % FLUSH_STEPS:
            return False
        asked = torch.tensor(float(self.first and self.stop()), device=self.world.device)
        return bool(self.world.sum(asked))

    def _save(self, step: int) -> None:
        """The schedule's checkpoint, with learning dynamics; the first process does it while the others wait."""
        self._flush()
        if not self.first:
            return
        dynamics, metadata = {}, {}
        settings = self.spec.learning_dynamics
        for split in ("train", "val") if settings.layers else ():
            rows = self.batches.dynamics(split, step)
            activations, gradients = capture(
                self.decoder,
                rows,
                suffixes=settings.layers,
                positions=settings.positions,
                micro_batch_size=self.spec.training.micro_batch_size,
                context=self._eager,
            )
            dynamics[f"{split}_activations"], dynamics[f"{split}_gradients"] = activations, gradients
            metadata[f"{split}_activations"] = activation_metadata(rows, settings.positions)
        self.keeper.save(step, self.decoder, self.optimizer, dynamics, metadata)
        self.saved = self.flushed = time.monotonic()

    def _save_rescue(self, step: int) -> None:
        self._flush()
        self.keeper.save_rescue(step, self.decoder, self.optimizer)
        self.saved = self.flushed = time.monotonic()

    @torch.no_grad()
    def _heldout_loss(self) -> float:
        """Mean loss over all held-out tokens, nats a token; micro-batches are dealt out to the processes in turn."""
        rows = self.batches.all_heldout()
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        parts = rows.split(self.spec.training.micro_batch_size)[self.world.rank :: self.world.size]
        for part in parts:
            for inputs, targets in micro_batches(part, len(part), self.world.device):
                with self._precision():
                    total += self.decoder.loss(inputs, targets, "sum")
        return float(self.world.sum(total)) / (len(rows) * self.batches.seq_len)

    def _precision(self) -> AbstractContextManager:
        """fp32 as it is, or bf16 by autocast over fp32 weights."""
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.spec.training.precision == "bf16")

    def _eager(self) -> AbstractContextManager:
        """The same, with compiled layers run uncompiled, where hooks work."""
        if not self.spec.training.compile:
            return self._precision()
        from contextlib import ExitStack

        stack = ExitStack()
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(self._precision())
        return stack
