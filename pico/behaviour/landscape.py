"""Curvature of the loss: critical sharpness, the largest eigenvalue and the trace of the Hessian. Never a full Hessian.

All are deterministic given a seed, and leave the parameters as they were. With float32 weights expect three to five
figures: gradients and losses are float32 sums.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pico.analysis.metrics.registry import Measurement
from pico.behaviour.catalogue import LANDSCAPE, listed, measured, undefined
from pico.behaviour.objective import Objective, flat

REACH = 60
"""Doublings or halvings of the step that the line search tries before it gives up."""


@listed(
    "critical_sharpness",
    data_type=LANDSCAPE,
    definition="2 / eta_c, eta_c the smallest step along the direction (minus the gradient) at which the loss rises "
    "above where it was",
    source="Kalra et al. 2026, arXiv 2601.16979",
)
def critical_sharpness(
    objective: Objective, direction: Tensor | None = None, first_step: float = 1.0, tolerance: float = 1e-3
) -> Measurement:
    """How sharp the loss is along an update: on a quadratic with the gradient g as direction, g'Hg / g'g.

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
    """A step that does not raise the loss and a longer one that does, with none between them tried.

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


@listed(
    "hessian_top_eigenvalue",
    data_type=LANDSCAPE,
    definition="largest (algebraic) eigenvalue of the Hessian of the mean loss, by Lanczos on Hessian-vector products",
    source="Cohen et al. 2021, arXiv 2103.00065; ARPACK: Lehoucq et al. 1998",
)
def top_eigenvalue(
    objective: Objective, *, seed: int = 0, tolerance: float = 1e-3, krylov: int = 20, restarts: int = 20
) -> Measurement:
    """Cost: at least `krylov`, commonly 20 to 40 Hessian-vector products; memory of krylov vectors of float64.

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


class Trace(NamedTuple):
    """An estimate and its standard error."""

    trace: Measurement
    standard_error: Measurement


@listed(
    "hessian_trace_standard_error",
    data_type=LANDSCAPE,
    definition="standard error of hessian_trace over its probes",
    source="Hutchinson 1990",
)
@listed(
    "hessian_trace",
    data_type=LANDSCAPE,
    definition="mean of v'Hv over Rademacher vectors v: an unbiased estimate of the trace of the mean loss's Hessian",
    source="Hutchinson 1990; Yao et al. 2020, arXiv 1912.07145",
)
def hessian_trace(objective: Objective, *, probes: int = 16, seed: int = 0) -> Trace:
    """Hutchinson's estimator. Cost: `probes` Hessian-vector products. At least two probes for a standard error.

    Exact, with standard error 0, where the Hessian is diagonal.
    """
    n, p = objective.n, objective.size
    example = flat(objective.parameters)
    generator = np.random.Generator(np.random.PCG64(seed))
    found = []
    for _ in range(probes):
        signs = generator.integers(0, 2, p, dtype=np.int8) * 2 - 1
        vector = torch.from_numpy(signs).to(example)
        found.append(float(vector.double() @ objective.hessian_vector(vector).double()))
    if probes < 2:
        return Trace(measured(found[0], n, p) if found else undefined("n_too_small", n, p),
                     undefined("n_too_small", n, p))  # fmt: skip
    return Trace(measured(float(np.mean(found)), n, p),
                 measured(float(np.std(found, ddof=1) / math.sqrt(probes)), n, p))  # fmt: skip
