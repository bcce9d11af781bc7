"""Metrics of the loss landscape: critical sharpness, largest eigenvalue and trace of the Hessian, local learning.

The Hessian is never formed. All are deterministic given a seed, and leave the parameters as they were. With float32
weights expect three to five figures: gradients and losses are float32 sums.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pico.analysis.metrics.registry import Measurement, metric
from pico.behaviour.objective import Objective, add, flat, part_gradient
from pico.behaviour.subject import Langevin, Subject, Value, measured, undefined

REACH = 60
"""Doublings or halvings of the step that the line search tries before it gives up."""


def _on(subject: Subject, **more: Any) -> dict[str, Any]:
    rows, at_once = subject.landscape_rows, subject.settings.landscape_rows_at_once
    return {"rows": len(rows), "seq": rows.shape[1] - 1, "rows_at_once": at_once, **more}


@metric(
    definition="2 / eta_c, eta_c the smallest step along the direction (minus the gradient) at which the loss rises "
    "above where it was",
    source="Kalra et al. 2026, arXiv 2601.16979",
    types="C",
    default=True,
)
def critical_sharpness(subject: Subject) -> Iterator[Value]:
    """Yields the sharpness of the training loss along its gradient; see `sharpness`."""
    if subject.objective is not None:
        yield Value(sharpness(subject.objective), _on(subject, direction="gradient"), "train")


def sharpness(
    objective: Objective, direction: Tensor | None = None, first_step: float = 1.0, tolerance: float = 1e-3
) -> Measurement:
    """Computes how sharp the loss is along an update: on a quadratic with the gradient g as direction, g'Hg / g'g.

    direction: (size,), the update is w - eta direction; None: the gradient, which costs one backward pass. An
    optimiser's update may be given instead. The search doubles or halves `first_step` until it has one step that raises
    the loss and a shorter one that does not, then bisects to a relative `tolerance`; a NaN or infinite loss is a rise.
    Cost: 10 to 30 forward passes, no more.
    `zero` where the direction is zero, does not descend, or the loss never rises within 2^60 of `first_step`.
    """
    n, p = objective.n, objective.size
    direction = objective.gradient() if direction is None else direction
    start = objective.loss()
    if not math.isfinite(start) or not bool(torch.isfinite(direction).all()):
        return undefined("nonfinite", n, p)
    if not bool(direction.any()):
        return undefined("zero", n, p)

    def change(step: float) -> float:
        with objective.at(-step * direction):
            loss = objective.loss()
        return loss - start if math.isfinite(loss) else math.inf

    bracket = _bracket(change, first_step)
    if bracket is None:
        return undefined("zero", n, p)
    low, high = bracket
    while high / low > 1 + tolerance:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if change(middle) > 0 else (middle, high)
    return measured(2 / math.sqrt(low * high), n, p)


def _bracket(change: Callable[[float], float], step: float) -> tuple[float, float] | None:
    """Returns a step that does not raise the loss and a longer one that does, with none between them tried.

    A step that leaves the loss exactly where it was says nothing: it may be too short for the rounding of the loss.
    """
    if change(step) > 0:
        high = step
        for _ in range(REACH):
            step /= 2
            if (found := change(step)) > 0:
                high = step
            elif found < 0:
                return step, high
        return None
    for _ in range(REACH):
        if change(2 * step) > 0:
            return step, 2 * step
        step *= 2
    return None


@metric(
    definition="largest (algebraic) eigenvalue of the Hessian of the mean loss, by Lanczos on Hessian-vector products",
    source="Cohen et al. 2021, arXiv 2103.00065; ARPACK: Lehoucq et al. 1998",
    types="C",
    default=True,
)
def hessian_top_eigenvalue(subject: Subject) -> Iterator[Value]:
    """Yields the largest curvature of the training loss; see `top_eigenvalue`."""
    if subject.objective is not None:
        tolerance, krylov, seed = subject.settings.hessian_tolerance, subject.settings.krylov, subject.settings.seed
        found = top_eigenvalue(subject.objective, seed=seed, tolerance=tolerance, krylov=krylov)
        yield Value(found, _on(subject, seed=seed, tolerance=tolerance, krylov=krylov), "train")


def top_eigenvalue(
    objective: Objective, *, seed: int = 0, tolerance: float = 1e-3, krylov: int = 20, restarts: int = 20
) -> Measurement:
    """Computes the largest eigenvalue of the Hessian by ARPACK.

    Cost: at least `krylov`, commonly 20 to 40 Hessian-vector products; memory of krylov vectors of float64.

    tolerance: relative, of the eigenvalue. `n_too_small` where ARPACK has not converged after `restarts`.
    """
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

    n, p = objective.n, objective.size
    example = flat(objective.parameters)
    if not bool(torch.isfinite(objective.gradient()).all()):
        return undefined("nonfinite", n, p)

    def product(vector: np.ndarray) -> np.ndarray:
        found = objective.hessian_vector(torch.from_numpy(np.ravel(vector)).to(example))
        return found.double().cpu().numpy()

    start = np.random.Generator(np.random.PCG64(seed)).standard_normal(p)
    if p == 1:
        return measured(float(product(np.ones(1))[0]), n, p)
    image = product(start)
    if not np.isfinite(image).all():
        return undefined("nonfinite", n, p)
    if not image.any():  # the Hessian vanishes; ARPACK would fail
        return measured(0.0, n, p)
    operator = LinearOperator((p, p), matvec=product, dtype=np.float64)
    try:
        values = eigsh(
            operator, k=1, which="LA", v0=start, tol=tolerance, ncv=min(p, krylov), maxiter=restarts,
            return_eigenvectors=False,
        )  # fmt: skip
    except ArpackNoConvergence:
        return undefined("n_too_small", n, p)
    except ArpackError:  # what it does with NaN
        return undefined("nonfinite", n, p)
    return measured(float(values[0]), n, p)


@metric(
    definition="mean of v'Hv over Rademacher vectors v: an unbiased estimate of the trace of the mean loss's Hessian",
    source="Hutchinson 1990; Yao et al. 2020, arXiv 1912.07145",
    types="C",
    default=True,
)
def hessian_trace(subject: Subject) -> Iterator[Value]:
    """Yields the summed curvature of the training loss, with its standard error over the probes."""
    if subject.objective is not None:
        given = {"probes": subject.settings.trace_probes, "seed": subject.settings.seed}
        trace = hutchinson_trace(subject.objective, **given)
        yield Value(trace.trace, _on(subject, **given), "train", standard_error=trace.standard_error)


class Trace(NamedTuple):
    """An estimate and its standard error."""

    trace: Measurement
    standard_error: Measurement


def hutchinson_trace(objective: Objective, *, probes: int = 16, seed: int = 0) -> Trace:
    """Estimates the trace of the Hessian by Hutchinson's method. Cost: `probes` Hessian-vector products.

    At least two probes are needed for a standard error. Exact, with standard error 0, where the Hessian is diagonal.
    """
    n, p = objective.n, objective.size
    example = flat(objective.parameters)
    generator = np.random.Generator(np.random.PCG64(seed))
    found = []
    for _ in range(probes):
        signs = generator.integers(0, 2, p, dtype=np.int8) * 2 - 1
        vector = torch.from_numpy(signs).to(example)
        found.append(float(vector.double() @ objective.hessian_vector(vector).double()))
    return Trace(*_mean_and_error(found, n, p))


def _mean_and_error(found: list[float], n: int, p: int) -> tuple[Measurement, Measurement]:
    """Returns the mean of independent estimates, and its standard error, which needs at least two."""
    nothing = undefined("n_too_small", n, p)
    mean = measured(float(np.mean(found)), n, p) if found else nothing
    error = float(np.std(found, ddof=1) / math.sqrt(len(found))) if len(found) > 1 else None
    return mean, nothing if error is None else measured(error, n, p)


@metric(
    definition="n beta (mean loss along SGLD chains from w - loss at w), n beta = n / ln n; regular minimum: d / 2",
    source="Lau et al. 2023, arXiv 2308.12108",
    types="C",
)
def local_learning_coefficient(subject: Subject) -> Iterator[Value]:
    """Yields the degeneracy of the training loss around w, with its standard error; see `local_learning`."""
    if subject.objective is not None:
        settings, seed = subject.settings.langevin, subject.settings.seed
        found = local_learning(subject.objective, settings, seed=seed)
        params = _on(subject, seed=seed, **vars(settings), n_beta=found.n_beta)
        yield Value(found.coefficient, params, "train", standard_error=found.standard_error)


class LocalLearning(NamedTuple):
    """The estimate, its standard error over chains, and the inverse temperature used."""

    coefficient: Measurement
    standard_error: Measurement
    n_beta: float


def local_learning(objective: Objective, settings: Langevin | None = None, *, seed: int = 0) -> LocalLearning:
    """Estimates lambda-hat of Lau et al.; n is the number of samples (tokens) of which the loss is the mean.

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
    return LocalLearning(*_mean_and_error(estimates, n, p), n_beta)


def _chain(objective: Objective, settings: Langevin, n_beta: float, seed: list[int]) -> float:
    """Returns the mean loss along one chain; NaN where it diverged."""
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
