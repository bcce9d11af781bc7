"""Learning dynamics: activations and gradients of chosen layers on a fixed batch, without touching training.

Gradients come from torch.autograd.grad, which neither reads nor writes `.grad` and wakes no distributed hooks; nothing
here draws random numbers. So a run that captures is bit for bit the run that does not.
"""

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pico.errors import PicoError
from pico.model import Decoder
from pico.train.batches import micro_batches


def chosen_layers(model: nn.Module, suffixes: Iterable[str]) -> dict[str, nn.Module]:
    """The modules whose name is a suffix or ends in "." + suffix, by name in model order.

    Raises PicoError naming a suffix that fits no module with a weight.
    """
    modules = {name: each for name, each in model.named_modules() if isinstance(getattr(each, "weight", None), Tensor)}
    wanted = list(suffixes)
    for suffix in wanted:
        if not any(_ends(name, suffix) for name in modules):
            known = sorted({name.split(".", 2)[-1] if name.startswith("layers.") else name for name in modules})
            raise PicoError(f"learning_dynamics.layers: no layer is named {suffix!r}", where="params.yaml",
                            mend=f"choose from: {', '.join(known)}")  # fmt: skip
    return {name: module for name, module in modules.items() if any(_ends(name, suffix) for suffix in wanted)}


def captured_positions(seq_len: int, positions: int) -> list[int]:
    """`positions` evenly spread positions of a sequence, the last one among them; all, where there are not so many."""
    count = min(seq_len, positions)
    return [(index + 1) * seq_len // count - 1 for index in range(count)]


def capture(
    model: Decoder,
    rows: Tensor,
    *,
    suffixes: Iterable[str],
    positions: int,
    micro_batch_size: int,
    context: Callable[[], AbstractContextManager] = nullcontext,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Activations and gradients of the chosen layers on `rows` ((n, seq_len + 1) int64).

    Returns (activations, gradients), float32 on the CPU. Activations: module name -> (n * positions, features), the
    layer's outputs, ordered by sample, then position. Gradients: parameter name -> the gradient of the mean loss over
    all tokens of `rows`; the micro-batch changes them by rounding only. `context` surrounds each forward pass.
    """
    layers = chosen_layers(model, suffixes)
    at = captured_positions(rows.shape[1] - 1, positions)
    device = next(model.parameters()).device
    outputs: dict[str, list[Tensor]] = {name: [] for name in layers}
    weights = {f"{name}.weight": model.get_parameter(f"{name}.weight") for name in layers}
    gradients = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs[name].append(output.detach()[:, at].flatten(0, 1).float().cpu())

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
    try:
        with torch.enable_grad():
            for inputs, targets in micro_batches(rows, micro_batch_size, device):
                with context():
                    loss = model.loss(inputs, targets, "sum") / (rows.shape[0] * targets.shape[1])
                for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
                    gradients[name] += gradient
    finally:
        for handle in handles:
            handle.remove()
    activations = {name: torch.cat(parts) for name, parts in outputs.items()}
    return activations, {name: gradient.cpu() for name, gradient in gradients.items()}


def activation_metadata(rows: Tensor, positions: int) -> dict[str, str]:
    """What a safetensors file of activations says about its rows: `positions` (JSON list) and `samples`."""
    return {"positions": json.dumps(captured_positions(rows.shape[1] - 1, positions)), "samples": str(len(rows))}


def _ends(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith("." + suffix)
