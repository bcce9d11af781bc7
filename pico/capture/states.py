"""Weights, activations and gradients of any Hugging Face causal LM, under pico-decoder's names and in its layout."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pico.capture.architectures import KNOWN, Architecture, Shape, output_rows, shape_of
from pico.errors import PicoError
from pico.train.capture import captured_positions

RESIDUAL = "residual"
"""A name among the modules for the stream after a block: the block's own output, kept under `layers.N`."""


@dataclass(frozen=True)
class States:
    """What is written of one checkpoint; see pico.checkpoint for the names."""

    weights: Mapping[str, Tensor]
    """Parameter name -> weight, in the type in which it was stored."""
    activations: Mapping[str, Tensor]
    """Module name -> (rows * positions, features) float32, ordered by sample, then position."""
    gradients: Mapping[str, Tensor]
    """Parameter name -> gradient of the mean loss over the batch, float32."""


class Blocks:
    """The blocks of a model, whose modules are found by pico's names."""

    def __init__(self, model: nn.Module, architecture: Architecture, shape: Shape) -> None:
        self.architecture, self.shape = architecture, shape
        self.blocks = _submodule(model, architecture.layers)
        self.names = [name for name in KNOWN if name in architecture.modules]
        if not isinstance(self.blocks, nn.ModuleList | nn.Sequential) or not len(self.blocks):
            raise PicoError(f"{architecture.layers} is not a list of blocks", mend="correct the mapping's `layers`")

    def module(self, layer: int, name: str) -> nn.Module:
        """The Hugging Face module whose outputs, or some of them, are pico's module `name`."""
        return _submodule(self.blocks[layer], self.architecture.modules[name])

    def weight(self, layer: int, name: str, values: Tensor | None = None) -> Tensor:
        """(out, in): the weight of pico's module `name`, or what `values`, in the module's own layout, are of it."""
        whole = self.module(layer, name).weight if values is None else values
        assert isinstance(whole, Tensor)
        return self.outputs(name, whole.detach().T if not self.architecture.transposed else whole.detach()).T

    def outputs(self, name: str, values: Tensor) -> Tensor:
        """Of (..., outputs of the module), those of pico's module `name`, in pico's order."""
        rows = output_rows(self.architecture, self.shape, name)
        if rows is None:
            return values
        if len(rows) > values.shape[-1] or int(rows.max()) >= values.shape[-1]:
            raise PicoError(
                f"{self.architecture.modules[name]} has {values.shape[-1]} outputs, too few for {name} of "
                f"{self.shape.n_heads} heads of {self.shape.head_dim}",
                mend="the mapping's `fused` does not fit this architecture",
            )
        return values[..., rows.to(values.device)]


def capture_states(
    model: Any,
    architecture: Architecture,
    rows: Tensor,
    *,
    modules: Sequence[str],
    layers: Sequence[int],
    positions: int,
    micro_batch_size: int,
    dtype: torch.dtype = torch.float32,
) -> States:
    """States of the chosen `modules` (pico's names) of `layers` on `rows`, (n, seq_len + 1) int64.

    `residual` is a block's output, which has no gradient.
    The model, in eval mode and float32, is left as it was. Weights of all known modules of `layers`, and embeddings,
    are given in `dtype`. The micro-batch changes gradients by rounding only. Raises PicoError for a module that the
    mapping does not have.
    """
    blocks = Blocks(model, architecture, shape_of(model.config))
    if missing := [name for name in modules if name not in (*blocks.names, RESIDUAL)]:
        raise PicoError(f"this architecture has no {missing[0]}", mend=f"choose from: {', '.join(blocks.names)}")
    wanted = {(layer, name): blocks.module(layer, name) for layer in layers for name in modules if name != RESIDUAL}
    at = captured_positions(rows.shape[1] - 1, positions)
    hooked = {**wanted, **{(layer, RESIDUAL): blocks.blocks[layer] for layer in layers if RESIDUAL in modules}}
    kept: dict[tuple[int, str], list[Tensor]] = {key: [] for key in hooked}
    parameters: dict[int, Any] = {
        id(module): module.weight for module in wanted.values()
    }  # a fused module is there once
    sums = {key: torch.zeros_like(weight) for key, weight in parameters.items()}

    def hook(key: tuple[int, str], length: Callable[[], int]) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output  # a block may give its attention, too
            # some models flatten sequences before their MLP
            outputs = output.detach().reshape(-1, length(), output.shape[-1])[:, at]
            kept[key].append(blocks.outputs(key[1], outputs).flatten(0, 1).float().cpu())

        return keep

    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    handles = [module.register_forward_hook(hook(key, lambda: rows.shape[1] - 1)) for key, module in hooked.items()]
    try:
        model.requires_grad_(False)
        for weight in parameters.values():
            weight.requires_grad_(True)
        for loss in _losses(model, rows, micro_batch_size):
            if not parameters:  # the residual stream alone is wanted: the forward pass was enough
                continue
            for key, gradient in zip(sums, torch.autograd.grad(loss, list(parameters.values())), strict=True):
                sums[key] += gradient
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])
    return States(
        weights=_weights(model, blocks, layers, dtype),
        activations={
            f"layers.{layer}" if name == RESIDUAL else f"layers.{layer}.{name}": torch.cat(parts)
            for (layer, name), parts in kept.items()
        },
        gradients={
            f"layers.{layer}.{name}.weight": blocks.weight(layer, name, sums[id(module)]).float().cpu()
            for (layer, name), module in wanted.items()
        },
    )


def _losses(model: Any, rows: Tensor, micro_batch_size: int) -> Any:
    """The parts of the mean cross-entropy over all targets, one a micro-batch."""
    device = next(model.parameters()).device
    count = rows.shape[0] * (rows.shape[1] - 1)
    with torch.enable_grad():
        for part in rows.split(micro_batch_size):
            inputs, targets = part[:, :-1].to(device), part[:, 1:].to(device)
            logits = model(input_ids=inputs, use_cache=False).logits.float()
            yield F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / count


def _weights(model: Any, blocks: Blocks, layers: Sequence[int], dtype: torch.dtype) -> dict[str, Tensor]:
    found = {f"layers.{layer}.{name}.weight": blocks.weight(layer, name) for layer in layers for name in blocks.names}
    for name, module in (
        ("embedding_proj", model.get_input_embeddings()),
        ("de_embedding_proj", model.get_output_embeddings()),
    ):
        if module is not None:
            found[f"{name}.weight"] = module.weight.detach()
    return {name: weight.to(dtype).cpu() for name, weight in found.items()}


def _submodule(module: nn.Module, name: str) -> Any:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        raise PicoError(
            f"the model has no module {name} ({error})", mend="correct the mapping; docs/any-model.md shows one"
        ) from None
