"""AdamW, and its state as named tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pico.config import Optimizer
from pico.errors import PicoError

STATE = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps for a parameter: running means of the gradient and of its square, and the count of updates."""


def make_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """Fused AdamW (arXiv 1711.05101) over the model's parameters, its state laid out at once.

    Weight decay pulls on matrices only: a norm's weight is meant to be about 1, not 0. The learning rate is set by
    the loop at every update.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True
    )
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state as `<parameter>.exp_avg`, `<parameter>.exp_avg_sq` and `<parameter>.step`; not copied."""
    return {
        f"{name}.{kind}": optimizer.state[parameter][kind]
        for name, parameter in model.named_parameters()
        for kind in STATE
    }


@torch.no_grad()
def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], *, where: str
) -> None:
    """The inverse of `optimizer_tensors`. Raises PicoError naming a tensor that is missing, unknown or misshapen."""
    own = optimizer_tensors(model, optimizer)
    for name in sorted(own.keys() | tensors.keys()):
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape:
            raise PicoError(f"optimiser state {name} does not fit the model", where=where,
                            mend="delete this checkpoint; training resumes from the one before it")  # fmt: skip
        own[name].copy_(tensors[name])
