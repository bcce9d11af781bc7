"""One update: forward and backward over the micro-batches, clipping, the optimizers; and their state by name."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pico.errors import PicoError
from pico.train.batches import micro_batches
from pico.train.parallel import Replicated
from pico.train.recipe import Recipe, TrainState


@dataclass(frozen=True)
class Update:
    """The record of one update; tensors stay on the device until somebody needs to know."""

    step: int
    """Updates taken, this one included."""
    learning_rate: float
    """That of the first parameter group."""
    loss: Tensor
    """The loss of the global batch before the update, nats a token."""
    norm: Tensor
    """The gradient's length before clipping."""


class TrainStep:
    """Takes updates. Nothing in here waits for the device."""

    def __init__(
        self, recipe: Recipe, model: Replicated, tokens_per_step: int, precision: Callable[[], AbstractContextManager]
    ) -> None:
        self.recipe, self.model, self.tokens_per_step, self.precision = recipe, model, tokens_per_step, precision
        self.training = recipe.spec.training
        trainable = {name: one for name, one in model.parameters.items() if one.requires_grad}
        self.optimizers = recipe.build_optimizers(trainable)
        model.check_optimizers(self.optimizers)
        self.groups: list[dict[str, Any]] = [group for one in self.optimizers for group in one.param_groups]
        for group in self.groups:
            group.setdefault("initial_lr", group["lr"])
        self.state = TrainState(model.model, model.parameters, self.optimizers)
        # Becomes 1 with a gradient that is not finite; the optimizers then leave weights and state alone. Where
        # training is to stop there, it stays 1, because the host learns of it some updates later.
        self.found_inf = torch.zeros((), device=model.world.device)

    def __call__(self, update: int, batch: tuple[Tensor, ...]) -> Update:
        """Takes update `update` (0-based) with this process's share of the global batch; see `Recipe.batch`.

        All tokens of the global batch weigh the same, whatever the split into processes and micro-batches.
        """
        model, world = self.model, self.model.world
        parts = list(micro_batches(batch, self.training.micro_batch_size, world.device))
        loss = torch.zeros((), device=world.device)
        for number, part in enumerate(parts, start=1):
            with model.no_sync(unless=number == len(parts)):
                with self.precision():
                    one = model.forward("loss", *part) / self.tokens_per_step
                (one * world.size).backward()  # the exchange averages over processes; we want their sum
            loss += one.detach()
        world.all_reduce(loss)
        norm = self._clip_gradients()
        found_inf = (~torch.isfinite(norm + loss)).float()
        stays = self.training.on_nonfinite == "stop"
        self.found_inf = torch.maximum(self.found_inf, found_inf) if stays else found_inf
        for group in self.groups:
            group["lr"] = self.recipe.learning_rate(update, group["initial_lr"])
        self.recipe.before_update(update, self.state)
        for optimizer in self.optimizers:
            step_unless(self.found_inf, optimizer)
        model.zero_grad()
        self.recipe.after_update(update, self.state)
        return Update(update + 1, self.groups[0]["lr"], loss, norm)

    def _clip_gradients(self) -> Tensor:
        """Returns the gradient's length; longer gradients than training.gradient_clip are brought back to it."""
        norm = self.model.norm()
        if limit := self.training.gradient_clip:
            factor = torch.clamp(limit / (norm + 1e-6), max=1.0)  # as torch.nn.utils.clip_grad_norm_
            torch._foreach_mul_(self.model.gradients(), factor)
        return norm

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Returns the optimizers' state as `<parameter>.<kind>`, `layers.0.attention.q_proj.weight.exp_avg` for one.

        Nothing is copied. Raises PicoError for state that is no tensor.
        """
        found = {}
        for name, parameter in self.model.parameters.items():
            for optimizer in self.optimizers:
                for kind, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):
                        found[f"{name}.{kind}"] = value
                    elif value is not None:
                        raise PicoError(f"{type(optimizer).__name__} keeps {kind} of {name} as {value!r}",
                                        mend="keep an optimizer's state in tensors: nothing else is saved")  # fmt: skip
        return found

    @torch.no_grad()
    def restore_optimizers(self, saved: Mapping[str, Tensor], *, where: str) -> None:
        """Takes back what `optimizer_tensors` returned, whole. Raises PicoError naming a tensor that does not fit.

        State that an optimizer lays out only in its first step is made here.
        """
        names = {id(one): name for name, one in self.model.parameters.items()}
        empty = {
            names[id(one)]: (one, optimizer, group.get("fused") or group.get("capturable"))
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for one in group["params"]
            if not optimizer.state.get(one)
        }
        for key, value in saved.items():
            name, _, kind = key.rpartition(".")
            if name in empty and (not value.dim() or value.shape == self.model.shapes[name]):
                parameter, optimizer, counts_on_device = empty[name]
                device = parameter.device if value.dim() or counts_on_device else "cpu"  # as torch places `step`
                optimizer.state[parameter][kind] = self.model.shard(name, value).to(device, copy=True)
        restore(self.optimizer_tensors(), saved, self.model, where=where)


@torch.no_grad()
def step_unless(found_inf: Tensor, optimizer: Any) -> None:
    """Steps an optimizer; where `found_inf` (a scalar on the device) is not 0, weights and state stay as they are.

    Optimizers that obey torch.amp's `found_inf` (the fused ones) cost nothing more. Any other works on weights that are
    copied before and put back after; its first step, which lays its state out, waits for the device.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = found_inf
        optimizer.step()
        return
    parameters = [one for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
    states = [optimizer.state.get(one, {}) for one in parameters]
    if not all(states):
        if not found_inf:
            optimizer.step()
        return
    tensors = [*parameters, *(each for state in states for each in state.values() if isinstance(each, Tensor))]
    before = [one.clone() for one in tensors]
    optimizer.step()
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(torch.where(found_inf.to(tensor.device).bool(), old, tensor))


@torch.no_grad()
def restore(mine: Mapping[str, Tensor], whole: Mapping[str, Tensor], model: Replicated | None, *, where: str) -> None:
    """Copies into each of `mine` (key `<parameter>` or `<parameter>.<kind>`) its part of the whole tensor of that key.

    Without a model, the whole of it. Raises PicoError naming a tensor that is missing, unknown or misshapen.
    """
    for key in sorted(mine.keys() | whole.keys()):
        name = key if model is None or key in model.shapes else key.rpartition(".")[0]
        fits = key in mine and key in whole
        if not fits or whole[key].shape != (model.shapes[name] if model and mine[key].dim() else mine[key].shape):
            raise PicoError(f"{key} does not fit the model", where=where,
                            mend="delete this checkpoint; training resumes from the one before it")  # fmt: skip
        mine[key].copy_(model.shard(name, whole[key]) if model else whole[key])


def without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns those tensors whose names start with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
