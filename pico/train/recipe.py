"""The seam for training: subclass `Recipe` to change the model, objective, optimizer, schedule or batch.

The loop (pico.train.loop) knows only these methods; each has the suite's behaviour as its default, and a hook that is
left as it is costs nothing. docs/training.md has a complete example.

Two rules keep a run resumable to the bit. Whatever changes while training goes on, besides weights and the optimizers'
state, must be given out by `tensors` or `values`. And every process of a run must do the same: draw random numbers
from generators that are seeded with the update's number, not from torch's global one.
"""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pico.errors import PicoError
from pico.model import Decoder
from pico.train.batches import Batches
from pico.train.schedules import learning_rate
from pico.train.spec import RunSpec


@dataclass(frozen=True)
class TrainState:
    """The objects that hooks may look at and change."""

    model: nn.Module
    """The result of `Recipe.build_model`."""
    parameters: Mapping[str, Tensor]
    """All parameters by name; of a sharded model (FSDP2) this process's shards."""
    optimizers: Sequence[Any]
    """The result of `Recipe.build_optimizers`."""


class Recipe:
    """The training of the suite: the next token's cross-entropy, with the optimizer and schedule of the settings."""

    def __init__(self, spec: RunSpec, batches: Batches) -> None:
        self.spec, self.batches = spec, batches

    def build_model(self) -> nn.Module:
        """Returns the model on the CPU, the same in every process: a Decoder, or a module that has one in it."""
        return Decoder(self.spec.decoder, seed=self.spec.seed)

    def export(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Returns the weights of a plain Decoder, as model.safetensors holds them, from those of the model by name.

        Override it where the model is more than a Decoder. A run is then resumed from the weights themselves, which
        are saved beside the optimizer's state, and learning dynamics are captured on the exported Decoder.
        """
        return weights

    def build_optimizers(self, parameters: Mapping[str, Tensor]) -> list[Any]:
        """Returns the optimizers that are stepped in turn over `parameters`, the trainable ones by name.

        Each is a torch.optim.Optimizer, or has its `param_groups`, `state` and `step()`. The `lr` of a parameter group
        is the peak that `learning_rate` is asked about. Their state must be tensors.
        """
        return self.spec.optimizer.build(parameters)

    def learning_rate(self, update: int, peak: float) -> float:
        """Returns the learning rate of update `update` (0-based) for a parameter group whose peak is `peak`."""
        return learning_rate(update, steps=self.spec.training.steps, peak=peak, schedule=self.spec.schedule)

    def batch(self, update: int, shard: slice) -> tuple[Tensor, ...]:
        """Returns this process's examples of update `update`: CPU tensors whose first axis is the example's.

        A pure function: `shard` is a part of the examples 0 to training.batch_size - 1. It is called in a thread, ahead
        of time. The default: one tensor (n, seq_len + 1) int64 of token ids.
        """
        return (self.batches.of_update(update, shard),)

    def loss(self, model: nn.Module, *batch: Tensor) -> Tensor:
        """Returns the objective of a micro-batch, a scalar: the *sum* of the losses over its tokens.

        `batch`: what `batch` returned, at most training.micro_batch_size examples of it, on the device. The sums of all
        micro-batches and processes are added and divided by batch_size x seq_len. Every trainable parameter must have
        a part in it.
        """
        (rows,) = batch
        return model.loss(rows[:, :-1], rows[:, 1:], "sum")  # type: ignore[operator]

    def heldout_loss(self, model: nn.Module, rows: Tensor) -> Tensor:
        """Returns the sum of the losses over the tokens of held-out rows, (n, seq_len + 1) int64: what the curve shows.

        It is called without gradients.
        """
        return decoder_of(model).loss(rows[:, :-1], rows[:, 1:], "sum")

    def begin(self, state: TrainState) -> None:
        """Is called once, before a resume and the first update, when model and optimizers are in their places."""

    def before_update(self, update: int, state: TrainState) -> None:
        """Is called when the gradients of update `update` are there, summed and clipped, before the optimizers."""

    def after_update(self, update: int, state: TrainState) -> None:
        """Is called after the optimizers have taken update `update`, also where they left a non-finite one out."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Returns further state by name, saved in optimizer.safetensors; a resume copies into these very tensors.

        Not for sharded training (FSDP2), which saves whole tensors only.
        """
        return {}

    def values(self) -> Mapping[str, Any]:
        """Returns further state as plain values, saved in trainer.json."""
        return {}

    def load_values(self, values: Mapping[str, Any]) -> None:
        """Takes back what `values` returned; it is called on a resume where that was not empty."""

    @classmethod
    def identity(cls) -> dict[str, str]:
        """Returns the class and the hash of its file, by which a checkpoint knows its recipe; empty for the default."""
        if cls is Recipe:
            return {}
        code = Path(inspect.getfile(cls)).read_bytes()
        return {"class": cls.__qualname__, "sha256": hashlib.sha256(code).hexdigest()}


def decoder_of(model: nn.Module) -> Decoder:
    """Returns the Decoder that `model` is, or has in it. Raises PicoError where there is none."""
    found = next((module for module in model.modules() if isinstance(module, Decoder)), None)
    if found is None:
        raise PicoError("Recipe.build_model returned a model without a Decoder in it",
                        mend="keep a pico.model.Decoder as one of its modules")  # fmt: skip
    return found
