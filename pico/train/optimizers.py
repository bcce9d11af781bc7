"""AdamW, and its state as named tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pico.config import Optimizer

STATE = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps for a parameter: running means of the gradient and of its square, and the count of updates."""


def make_optimizer(parameters: Mapping[str, Tensor], settings: Optimizer) -> torch.optim.AdamW:
    """Fused AdamW (arXiv 1711.05101) over these parameters, its state laid out at once.

    Weight decay pulls on matrices only: a norm's weight is meant to be about 1, not 0. The learning rate is set by
    the loop at every update.
    """
    wanted = [parameter for parameter in parameters.values() if parameter.requires_grad]
    groups = [
        {"params": [p for p in wanted if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in wanted if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True
    )
    for parameter in wanted:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def optimizer_tensors(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state as `<parameter>.exp_avg`, `<parameter>.exp_avg_sq` and `<parameter>.step`; not copied."""
    return {
        f"{name}.{kind}": optimizer.state[parameter][kind] for name, parameter in parameters.items() for kind in STATE
    }
