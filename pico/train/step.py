"""One update: forward and backward over the micro-batches, clipping, AdamW; and what is known of it afterwards."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from pico.train.batches import micro_batches
from pico.train.optimizers import make_optimizer
from pico.train.parallel import Whole
from pico.train.schedules import learning_rate
from pico.train.spec import RunSpec


@dataclass(frozen=True)
class Update:
    """What one update was; tensors stay on the device until somebody needs to know."""

    step: int
    """Updates taken, this one included."""
    learning_rate: float
    loss: Tensor
    """Of the global batch, before the update, nats a token."""
    norm: Tensor
    """Of the gradient, before clipping."""


class Updates:
    """Takes updates. Nothing in here waits for the device."""

    def __init__(
        self, spec: RunSpec, shared: Whole, tokens_per_step: int, precision: Callable[[], AbstractContextManager]
    ) -> None:
        self.spec, self.shared, self.tokens_per_step, self.precision = spec, shared, tokens_per_step, precision
        self.optimizer = make_optimizer(shared.parameters, spec.optimizer)
        # Becomes 1 with a gradient that is not finite; the fused optimiser then leaves the weights alone. Where
        # training is to stop there, it stays 1, because the host learns of it some updates later.
        self.broken = torch.zeros((), device=shared.world.device)

    def take(self, update: int, rows: Tensor) -> Update:
        """Update `update` (0-based) with this process's share of the global batch, (n, seq_len + 1) int64.

        All tokens of the global batch weigh the same, whatever the split into processes and micro-batches.
        """
        training, world = self.spec.training, self.shared.world
        parts = list(micro_batches(rows, training.micro_batch_size, world.device))
        loss = torch.zeros((), device=world.device)
        for number, (inputs, targets) in enumerate(parts, start=1):
            with self.shared.quiet(last=number == len(parts)):
                with self.precision():
                    part = self.shared.loss(inputs, targets) / self.tokens_per_step
                (part * world.size).backward()  # the exchange averages over processes; we want their sum
            loss += part.detach()
        world.sum(loss)
        norm = self._clipped()
        broken = (~torch.isfinite(norm + loss)).float()
        self.broken = torch.maximum(self.broken, broken) if training.on_nonfinite == "stop" else broken
        rate = learning_rate(update, steps=training.steps, peak=self.spec.optimizer.lr, schedule=self.spec.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.found_inf = self.broken  # type: ignore[attr-defined]  # torch.amp's own way to skip a fused step
        self.optimizer.step()
        self.shared.forget_gradients()
        return Update(update + 1, rate, loss, norm)

    def _clipped(self) -> Tensor:
        """The gradient's length; gradients longer than training.gradient_clip are brought back to it."""
        norm = self.shared.norm()
        if limit := self.spec.training.gradient_clip:
            factor = torch.clamp(limit / (norm + 1e-6), max=1.0)  # as torch.nn.utils.clip_grad_norm_
            torch._foreach_mul_(self.shared.gradients(), factor)
        return norm
