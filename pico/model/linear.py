"""x @ weight.T by the fastest matrix product that torch has on the device.

On a CPU torch multiplies float32 matrices with MKL, which on AMD's processors reaches less than half of what oneDNN
does (117 against 260 GFLOP/s on one core of a Zen 5); both are part of torch. Elsewhere torch's own choice is best.
The two differ by rounding at most, and each gives equal bits for equal input, shapes and number of threads.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""True where this build of torch has oneDNN, as those for x86 processors do."""


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Returns x @ weight.T, (..., m), as F.linear. x: (..., n); weight: (m, n). Differentiable any number of times."""
    if not (ONEDNN and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32):
        return F.linear(x, weight)
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or x.numel() == 0:
        return F.linear(x, weight)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Linear.apply(x, weight)
    return _onednn(x, weight)


class Linear(nn.Linear):
    """A linear layer without a bias, computed by `linear`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


class _Linear(torch.autograd.Function):
    """The derivatives are products of the same kind, and differentiable in turn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        slope = upstream[0]
        for_x = linear(slope, weight.T) if ctx.needs_input_grad[0] else None
        for_weight = linear(slope.flatten(0, -2).T, x.flatten(0, -2).T) if ctx.needs_input_grad[1] else None
        return for_x, for_weight


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
