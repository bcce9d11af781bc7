"""Learning dynamics: activations and gradients of chosen layers on a fixed batch, without touching training.

Gradients come from torch.autograd.grad, which neither reads nor writes `.grad` and wakes no distributed hooks; nothing
here draws random numbers. So a run that captures is bit for bit the run that does not.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pico.errors import PicoError
from pico.model import Decoder
from pico.train.batches import Batches, micro_batches


def chosen_layers(model: nn.Module, suffixes: Iterable[str]) -> dict[str, nn.Module]:
    """Returns the modules whose name is a suffix or ends in "." + suffix, by name in model order.

    Raises PicoError naming a suffix that fits no module with a weight.
    """
    modules = {name: each for name, each in model.named_modules() if isinstance(getattr(each, "weight", None), Tensor)}
    endings = tuple(f".{suffix}" for suffix in suffixes)
    for ending in endings:
        if not any(f".{name}".endswith(ending) for name in modules):
            known = sorted({name.split(".", 2)[-1] if name.startswith("layers.") else name for name in modules})
            raise PicoError(f"learning_dynamics.layers: no layer is named {ending[1:]!r}", where="params.yaml",
                            mend=f"choose from: {', '.join(known)}")  # fmt: skip
    return {name: module for name, module in modules.items() if f".{name}".endswith(endings)}


def captured_positions(seq_len: int, positions: int) -> list[int]:
    """Returns evenly spread positions of a sequence, the last one among them; all, where there are not so many."""
    count = min(seq_len, positions)
    return [(index + 1) * seq_len // count - 1 for index in range(count)]


class Captured(NamedTuple):
    """Activations and gradients of a batch; all on the CPU."""

    activations: dict[str, Tensor]
    """Module name -> (n * positions, features) float32: the layer's outputs, ordered by sample, then position."""
    gradients: dict[str, Tensor]
    """Parameter name -> the gradient of the mean loss over all tokens, float32; chosen layers only."""
    norms: dict[str, Tensor]
    """Name of each of the model's parameters -> (small batches + 1,) float64: the squared lengths of the gradients of
    the mean loss over each small batch, and last that over all tokens. Empty without small batches."""


def capture(
    model: Decoder,
    rows: Tensor,
    *,
    suffixes: Iterable[str],
    positions: int,
    micro_batch_size: int,
    noise_batch: int | None = None,
    context: Callable[[], AbstractContextManager] = nullcontext,
) -> Captured:
    """Returns activations and gradients of the chosen layers on `rows` ((n, seq_len + 1) int64).

    The micro-batch changes them by rounding only. noise_batch: rows of a small batch, of which there must be at least
    two; what is left of `rows` after whole ones counts in everything but `norms`. `context` surrounds each forward
    pass.
    """
    layers = chosen_layers(model, suffixes)
    at = captured_positions(rows.shape[1] - 1, positions)
    outputs: dict[str, list[Tensor]] = {name: [] for name in layers}
    chosen = [f"{name}.weight" for name in layers]
    # How much gradients vary is a property of the whole model: then all of its parameters have a part in it.
    weights = dict(model.named_parameters()) if noise_batch else {name: model.get_parameter(name) for name in chosen}
    whole = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    norms: list[Tensor] = []

    def keep(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs[name].append(output.detach()[:, at].flatten(0, 1).float().cpu())

    handles = [module.register_forward_hook(partial(keep, name)) for name, module in layers.items()]
    try:
        for small in rows.split(noise_batch or len(rows)):
            gradients = _gradients(model, small, weights, micro_batch_size, context)
            if noise_batch and len(small) == noise_batch:
                norms.append(_squares(gradients))
            for name, gradient in gradients.items():
                whole[name].add_(gradient, alpha=len(small) / len(rows))
    finally:
        for handle in handles:
            handle.remove()
    if noise_batch:
        norms.append(_squares(whole))
    return Captured(
        {name: torch.cat(parts) for name, parts in outputs.items()},
        {name: whole[name].cpu() for name in chosen},
        dict(zip(weights, torch.stack(norms, dim=1).cpu(), strict=True)) if noise_batch else {},
    )


def capture_splits(
    model: Decoder, batches: Batches, step: int, context: Callable[[], AbstractContextManager] = nullcontext
) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Mapping[str, str]]]:
    """Returns the capture of checkpoint `step`: the files of learning_dynamics/ by name, and their metadata.

    On the batches "train" and "val" of `batches`, as the run's settings say; nothing where they name no layers.
    """
    settings, training = batches.spec.learning_dynamics, batches.spec.training
    dynamics: dict[str, Mapping[str, Tensor]] = {}
    metadata: dict[str, Mapping[str, str]] = {}
    for split in ("train", "val") if settings.layers else ():
        rows = batches.dynamics(split, step)
        small = settings.noise_batch if 2 * settings.noise_batch <= len(rows) else None
        found = capture(
            model,
            rows,
            suffixes=settings.layers,
            positions=settings.positions,
            micro_batch_size=training.micro_batch_size,
            noise_batch=small,
            context=context,
        )
        dynamics |= {f"{split}_activations": found.activations, f"{split}_gradients": found.gradients}
        metadata[f"{split}_activations"] = activation_metadata(rows, settings.positions)
        if small:
            dynamics[f"{split}_gradient_norms"] = found.norms
            metadata[f"{split}_gradient_norms"] = noise_metadata(rows, small)
    return dynamics, metadata


def _gradients(
    model: Decoder,
    rows: Tensor,
    weights: Mapping[str, Tensor],
    micro_batch_size: int,
    context: Callable[[], AbstractContextManager],
) -> dict[str, Tensor]:
    """Returns gradients of the mean loss over all tokens of `rows`, float32, on the model's device."""
    found: dict[str, Tensor] = {}
    with torch.enable_grad():
        for (part,) in micro_batches((rows,), micro_batch_size, next(iter(weights.values())).device):
            inputs, targets = part[:, :-1], part[:, 1:]
            with context():
                loss = model.loss(inputs, targets, "sum") / (rows.shape[0] * targets.shape[1])
            for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
                found[name] = found[name] + gradient if name in found else gradient.float()
    return found


def _squares(gradients: Mapping[str, Tensor]) -> Tensor:
    """Returns the squared length of each gradient: (parameters,) float64."""
    return torch.stack([gradient.double().square().sum() for gradient in gradients.values()])


def noise_metadata(rows: Tensor, noise_batch: int) -> dict[str, str]:
    """Returns the metadata of a file of norms: tokens of a `small` and of the whole (`large`) batch."""
    each = rows.shape[1] - 1
    return {"large": str(len(rows) * each), "small": str(noise_batch * each)}


def activation_metadata(rows: Tensor, positions: int) -> dict[str, str]:
    """Returns the metadata of a file of activations: `positions` (JSON list) and `samples`."""
    return {"positions": json.dumps(captured_positions(rows.shape[1] - 1, positions)), "samples": str(len(rows))}
