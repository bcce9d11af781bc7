"""A loss as a function of a model's parameters: value, gradient, Hessian-vector products. A few rows at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pico.behaviour.scorer import DifferentiableScorer, check_rows


class Part(NamedTuple):
    """A share of the batch over which the loss is a mean."""

    share: float
    """Its share of the samples; all shares sum to 1."""
    loss: Callable[[], Tensor]
    """The part's mean loss: a scalar that autograd can differentiate."""


@dataclass(frozen=True)
class Objective:
    """L(w) = sum over parts of share x loss, w all parameters as one flat vector in their order.

    Vectors go in and come out flat, in the parameters' type and on their device. Parameters are moved only within
    `at`, which restores them to the bit. Parts are looked at in turn, so memory is that of one part.
    """

    parameters: tuple[Tensor, ...]
    parts: tuple[Part, ...]
    n: int
    """Samples (tokens, for a language model) of which the loss is the mean."""

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters)

    @torch.no_grad()
    def loss(self) -> float:
        """Computes L here. Cost: one forward pass."""
        return sum(part.share * float(part.loss()) for part in self.parts)

    def gradient(self) -> Tensor:
        """Computes dL/dw: (size,). Cost: one forward and backward pass."""
        total = torch.zeros_like(flat(self.parameters))
        for part in self.parts:
            total.add_(part_gradient(self, part)[1], alpha=part.share)
        return total

    def hessian_vector(self, vector: Tensor) -> Tensor:
        """Computes (d^2 L/dw^2) vector, (size,), by differentiating gradient . vector (Pearlmutter 1994).

        Cost: about five forward passes, with explicit attention, whose fused kernels have no second derivative.
        """
        total = torch.zeros_like(vector)
        for part in self.parts:
            with sdpa_kernel(SDPBackend.MATH):
                first = torch.autograd.grad(part.loss(), self.parameters, create_graph=True, materialize_grads=True)
                slope = torch.cat([one.reshape(-1) for one in first]) @ vector
                if not slope.requires_grad:  # a loss that is linear in w
                    continue
                second = torch.autograd.grad(slope, self.parameters, materialize_grads=True)
            total.add_(flat(second), alpha=part.share)
        return total

    @contextmanager
    def at(self, displacement: Tensor) -> Iterator[None]:
        """Moves w to w + displacement (size,) within it; afterwards w is what it was, to the bit."""
        with self.restored():
            add(self.parameters, displacement)
            yield

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Makes the parameters what they were, to the bit, whatever was done to them within."""
        before = [parameter.detach().clone() for parameter in self.parameters]
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, before, strict=True):
                    parameter.copy_(value)


def part_gradient(objective: Objective, part: Part) -> tuple[float, Tensor]:
    """Returns the mean loss of one part and its gradient (size,)."""
    loss = part.loss()
    gradient = torch.autograd.grad(loss, objective.parameters, materialize_grads=True)
    return float(loss.detach()), flat(gradient)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Returns all entries as one vector, a copy."""
    return torch.cat([one.detach().reshape(-1) for one in tensors])


@torch.no_grad()
def add(parameters: Sequence[Tensor], displacement: Tensor) -> None:
    """Adds a flat vector to the parameters in place."""
    pieces = displacement.split([parameter.numel() for parameter in parameters])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.add_(piece.view_as(parameter))


def language_objective(scorer: DifferentiableScorer, rows: np.ndarray, rows_at_once: int = 1) -> Objective:
    """Returns the mean cross-entropy (nats) of rows[:, 1:] given what comes before them, rows being (n >= 1, seq + 1).

    rows_at_once: rows in one part: memory is that of so many rows' logits and activations, a few times over.
    Raises PicoError for rows that the model cannot read.
    """
    rows = check_rows(scorer, rows)
    parts = tuple(
        Part(len(part) / len(rows), _cross_entropy(scorer, torch.from_numpy(part.copy())))
        for part in (rows[start : start + rows_at_once] for start in range(0, len(rows), rows_at_once))
    )
    return Objective(scorer.parameters(), parts, rows.shape[0] * (rows.shape[1] - 1))


def _cross_entropy(scorer: DifferentiableScorer, rows: Tensor) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        logits = scorer.logits(rows[:, :-1]).flatten(0, 1)
        return F.cross_entropy(logits.float(), rows[:, 1:].flatten().to(logits.device))

    return loss
