"""Cross-entropy of a linear output layer, a few rows at a time: the (tokens, vocabulary) logits never exist as a whole.

For a chunk of rows the logits, the loss and both gradients are worked out together in the forward pass, while the
chunk is in cache; the backward pass only scales them. The same idea as in Liger Kernel (arXiv 2410.10989), in plain
torch: three matrix products like the textbook way, without its many passes over a tensor of tokens x vocabulary.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pico.model.linear import linear

CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Logits held at a time, as float32: 16 MB stay near a CPU's cache; 1 GB keeps a GPU's matrix products large."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, reduction: Literal["mean", "sum", "none"] = "mean"
) -> Tensor:
    """Returns -log softmax(hidden @ weight.T)[targets] in nats, in float32.

    hidden: (n, d_model); weight: (vocab, d_model); targets: (n,) int64. Returns a scalar, or (n,) for "none", which
    carries no gradient. Under autocast the matrix products run in the autocast type, everything else in float32.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        kind = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(kind), weight.to(kind)
    else:
        hidden = hidden.to(weight.dtype)
    if reduction == "none":
        with torch.no_grad():
            return torch.cat([_losses(linear(hidden[rows], weight), targets[rows]) for rows in _chunks(hidden, weight)])
    total = _LinearCrossEntropy.apply(hidden, weight, targets)
    return total / len(targets) if reduction == "mean" else total


class _LinearCrossEntropy(torch.autograd.Function):
    """The sum of the losses. Saves the gradients, not the logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for rows in _chunks(hidden, weight):
            log_p = linear(hidden[rows], weight).float().log_softmax(-1)
            total -= log_p.gather(-1, targets[rows, None]).sum()
            if for_hidden is None and for_weight is None:
                continue
            # d loss / d logits = softmax(logits) - one_hot(target)
            slope = log_p.exp_()
            slope[torch.arange(len(slope), device=slope.device), targets[rows]] -= 1.0
            slope = slope.to(hidden.dtype)
            if for_hidden is not None:
                for_hidden[rows] = linear(slope, weight.T)
            if for_weight is not None:
                for_weight += linear(slope.T, hidden[rows].T)
        ctx.save_for_backward(for_hidden, for_weight)
        ctx.weight_type = weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        for_hidden, for_weight = ctx.saved_tensors
        scale = upstream[0]
        return (
            None if for_hidden is None else for_hidden * scale.to(for_hidden.dtype),
            None if for_weight is None else (for_weight * scale).to(ctx.weight_type),
            None,
        )


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the cross-entropy of each row, float32."""
    logits = logits.float()
    return logits.logsumexp(-1) - logits.gather(-1, targets[:, None])[:, 0]


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Returns slices of rows whose logits number at most CHUNK_ELEMENTS: a function of shapes and kind of device."""
    size = max(16, CHUNK_ELEMENTS.get(hidden.device.type, 1 << 24) // len(weight))
    return [slice(start, start + size) for start in range(0, len(hidden), size)]
