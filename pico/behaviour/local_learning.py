"""The local learning coefficient, by stochastic gradient Langevin dynamics: how degenerate the loss is around w."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from pico.analysis.metrics.registry import Measurement
from pico.behaviour.catalogue import LANDSCAPE, listed, measured, undefined
from pico.behaviour.objective import Objective, add, flat, part_gradient


@dataclass(frozen=True)
class Langevin:
    """How the neighbourhood of w is sampled."""

    step_size: float = 1e-5
    """epsilon: must be well below 4 / (n beta x top eigenvalue + localisation), or the chain flies off."""
    localisation: float = 100.0
    """gamma, the strength of the spring to w. It lowers the estimate by n beta h / (n beta h + gamma) in a direction
    of curvature h, and without it a chain in a flat direction wanders off."""
    chains: int = 2
    burn_in: int = 100
    """Steps before the loss is averaged."""
    draws: int = 200
    """Steps whose losses are averaged, in each chain."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the table's params."""
        return dict(vars(self))


class LocalLearning(NamedTuple):
    """The estimate, its standard error over chains, and the inverse temperature used."""

    coefficient: Measurement
    standard_error: Measurement
    n_beta: float


@listed(
    "local_learning_coefficient_standard_error",
    data_type=LANDSCAPE,
    definition="standard error of local_learning_coefficient over its chains",
    source="Lau et al. 2023, arXiv 2308.12108",
)
@listed(
    "local_learning_coefficient",
    data_type=LANDSCAPE,
    definition="n beta (mean loss along SGLD chains from w - loss at w), n beta = n / ln n; regular minimum: d / 2",
    source="Lau et al. 2023, arXiv 2308.12108",
)
def local_learning_coefficient(
    objective: Objective, settings: Langevin | None = None, *, seed: int = 0
) -> LocalLearning:
    """Lambda-hat of Lau et al.; n is the number of samples (tokens) of which the loss is the mean.

    A step: w <- w - epsilon / 2 (n beta grad L + gamma (w - w0)) + normal(0, epsilon), the gradient that of one part of
    the objective, drawn with the probability of its share. Negative where w is no minimum of the loss. `nonfinite`
    where a chain diverged: take a smaller step. Cost: chains x (burn_in + draws) forward and backward passes of a part.
    The parameters end as they were.
    """
    settings = settings or Langevin()
    n, p = objective.n, objective.size
    n_beta = n / math.log(n) if n > 1 else 0.0
    if n < 2 or settings.draws < 1 or settings.chains < 1:
        nothing = undefined("n_too_small", n, p)
        return LocalLearning(nothing, nothing, n_beta)
    start = objective.loss()
    estimates = [n_beta * (_chain(objective, settings, n_beta, [seed, chain]) - start)
                 for chain in range(settings.chains)]  # fmt: skip
    error = (
        measured(float(np.std(estimates, ddof=1) / math.sqrt(len(estimates))), n, p)
        if len(estimates) > 1
        else undefined("n_too_small", n, p)
    )
    return LocalLearning(measured(float(np.mean(estimates)), n, p), error, n_beta)


def _chain(objective: Objective, settings: Langevin, n_beta: float, seed: list[int]) -> float:
    """The mean loss along one chain; NaN where it diverged."""
    generator = np.random.Generator(np.random.PCG64(seed))
    origin = flat(objective.parameters)
    noise = torch.Generator(device="cpu").manual_seed(int(generator.integers(2**62)))
    shares = [part.share for part in objective.parts]
    total = 0.0
    with objective.restored():
        for step in range(settings.burn_in + settings.draws):
            part = objective.parts[int(generator.choice(len(shares), p=np.asarray(shares) / sum(shares)))]
            loss, drift = part_gradient(objective, part)
            if not math.isfinite(loss):
                return math.nan
            if step >= settings.burn_in:
                total += loss
            drift.mul_(n_beta).add_(flat(objective.parameters) - origin, alpha=settings.localisation)
            kick = torch.randn(objective.size, generator=noise, dtype=origin.dtype).to(origin.device)
            add(
                objective.parameters,
                drift.mul_(-settings.step_size / 2).add_(kick, alpha=math.sqrt(settings.step_size)),
            )
    return total / settings.draws
