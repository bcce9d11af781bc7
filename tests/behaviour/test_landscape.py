"""Curvature against known quadratics and against the dense Hessian of a tiny decoder."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pico.behaviour import as_scorer
from pico.behaviour.landscape import hutchinson_trace, local_learning, sharpness, top_eigenvalue
from pico.behaviour.objective import Objective, Part, flat, language_objective
from pico.behaviour.subject import Langevin
from pico.model import Decoder, DecoderConfig


def quadratic(curvature: np.ndarray, at: np.ndarray, n: int = 1000) -> Objective:
    """w'Hw / 2 around 0, at w = `at`, as two parameters and two parts."""
    hessian = torch.from_numpy(curvature)
    values = torch.from_numpy(at)
    parameters = (values[:1].clone().requires_grad_(), values[1:].clone().requires_grad_())

    def loss() -> torch.Tensor:
        w = torch.cat(parameters)
        return w @ hessian @ w / 2

    return Objective(parameters, (Part(0.25, loss), Part(0.75, loss)), n)


def symmetric(seed: int, size: int) -> np.ndarray:
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]
    return rotation @ np.diag(np.linspace(-1, 5, size)) @ rotation.T


@pytest.fixture
def tiny() -> tuple[Objective, Callable[[], torch.Tensor]]:
    """A decoder of 220 parameters, and what gives the dense Hessian of its loss, from autograd."""
    config = DecoderConfig(
        d_model=4, n_layers=1, vocab_size=11, max_seq_len=8, attention_n_heads=2, attention_n_kv_heads=1,
        activation_hidden_dim=6,
    )  # fmt: skip
    model = Decoder(config, seed=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(20)
    rows = np.random.default_rng(0).integers(0, 11, (3, 9))
    objective = language_objective(as_scorer(model), rows, rows_at_once=2)
    names = [name for name, _ in model.named_parameters()]
    sizes = [parameter.numel() for parameter in model.parameters()]
    shapes = [parameter.shape for parameter in model.parameters()]
    tokens = torch.from_numpy(rows)

    def loss(w: torch.Tensor) -> torch.Tensor:
        parts = {name: part.view(shape) for name, part, shape in zip(names, w.split(sizes), shapes, strict=True)}
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            logits = torch.func.functional_call(model, parts, (tokens[:, :-1],))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    return objective, lambda: torch.autograd.functional.hessian(loss, flat(objective.parameters))


def test_products_and_gradient_are_those_of_the_quadratic():
    hessian, at = symmetric(0, 6), np.arange(1.0, 7.0)
    objective = quadratic(hessian, at)
    assert objective.loss() == pytest.approx(at @ hessian @ at / 2)
    np.testing.assert_allclose(objective.gradient(), hessian @ at)
    np.testing.assert_allclose(objective.hessian_vector(torch.ones(6, dtype=torch.float64)), hessian.sum(1))
    with objective.at(torch.ones(6, dtype=torch.float64)):
        assert objective.loss() == pytest.approx((at + 1) @ hessian @ (at + 1) / 2)
    assert np.array_equal(flat(objective.parameters), at)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_critical_sharpness_of_a_quadratic(scale):
    hessian, at = scale * symmetric(0, 6), np.arange(1.0, 7.0)
    gradient = hessian @ at
    expected = gradient @ hessian @ gradient / (gradient @ gradient)
    assert sharpness(quadratic(hessian, at)).value == pytest.approx(expected, rel=1e-3)
    # along the steepest direction it is the largest eigenvalue, whatever the loss is scaled by
    top = np.linalg.eigh(hessian)[1][:, -1]
    assert sharpness(quadratic(hessian, top)).value == pytest.approx(5 * scale, rel=1e-3)
    # along an update u: 2 g.u / u'Hu is the critical step
    update = gradient + 0.1 * scale * at
    step = 2 * gradient @ update / (update @ hessian @ update)
    found = sharpness(quadratic(hessian, at), torch.from_numpy(update), tolerance=1e-6)
    assert found.value == pytest.approx(2 / step, rel=1e-5)


def test_critical_sharpness_where_there_is_none():
    assert sharpness(quadratic(np.eye(3), np.zeros(3))).status == "zero"  # a minimum
    assert sharpness(quadratic(-np.eye(3), np.ones(3))).status == "zero"  # falls for ever
    uphill = torch.from_numpy(-np.ones(3))
    assert sharpness(quadratic(np.eye(3), np.ones(3)), uphill).status == "zero"
    assert sharpness(quadratic(np.eye(3), np.full(3, np.nan))).status == "nonfinite"


def test_eigenvalue_and_trace_of_a_quadratic():
    hessian = symmetric(1, 30)
    objective = quadratic(hessian, np.ones(30))
    found = top_eigenvalue(objective, tolerance=1e-8)
    assert found.value == pytest.approx(5, rel=1e-7)
    assert (found.n, found.p) == (1000, 30)
    diagonal = hutchinson_trace(quadratic(np.diag(np.arange(30.0)), np.ones(30)), probes=3)
    assert diagonal.trace.value == pytest.approx(np.arange(30).sum())
    assert diagonal.standard_error.value == pytest.approx(0, abs=1e-9)
    trace, error = (one.value for one in hutchinson_trace(objective, probes=400))
    assert abs(trace - np.trace(hessian)) < 4 * error
    off_diagonal = hessian - np.diag(np.diag(hessian))
    assert error == pytest.approx(math.sqrt(2 * (off_diagonal**2).sum() / 400), rel=0.2)  # Hutchinson's variance


def test_a_flat_loss_has_no_curvature_and_a_broken_one_a_status():
    assert top_eigenvalue(quadratic(np.zeros((4, 4)), np.ones(4))).value == 0
    broken = quadratic(np.eye(4), np.full(4, np.nan))
    assert top_eigenvalue(broken).status == "nonfinite"
    assert hutchinson_trace(quadratic(np.full((4, 4), np.inf), np.ones(4)), probes=2).trace.status == "nonfinite"
    assert hutchinson_trace(quadratic(np.eye(4), np.ones(4)), probes=1).standard_error.status == "n_too_small"
    unfinished = top_eigenvalue(quadratic(symmetric(1, 60), np.ones(60)), tolerance=1e-14, krylov=3, restarts=1)
    assert unfinished.status == "n_too_small"


def test_eigenvalue_and_trace_are_those_of_the_dense_hessian(tiny):
    objective, dense_hessian = tiny
    hessian = dense_hessian()
    dense = hessian.double().numpy()
    assert np.abs(dense).max() > 0.01
    vector = torch.randn(objective.size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(objective.hessian_vector(vector), hessian @ vector, rtol=1e-3, atol=1e-4)
    assert top_eigenvalue(objective, tolerance=1e-4).value == pytest.approx(np.linalg.eigvalsh(dense)[-1], rel=1e-3)
    trace, error = (one.value for one in hutchinson_trace(objective, probes=40))
    assert error == pytest.approx(math.sqrt(2 * ((dense - np.diag(np.diag(dense))) ** 2).sum() / 40), rel=0.4)
    assert abs(trace - np.trace(dense)) < 4 * error


def test_critical_sharpness_of_a_model_is_at_most_where_its_loss_first_rises(tiny):
    objective, _ = tiny
    gradient, start = objective.gradient(), objective.loss()
    before = flat(objective.parameters).clone()
    critical = 2 / sharpness(objective, tolerance=1e-3).value
    for factor, rises in ((0.5, False), (0.99, False), (1.01, True)):
        with objective.at(-factor * critical * gradient):
            assert (objective.loss() > start) == rises
    assert torch.equal(flat(objective.parameters), before)


def test_parts_do_not_matter():
    model_rows = np.random.default_rng(0).integers(0, 11, (3, 9))
    config = DecoderConfig(
        d_model=4, n_layers=1, vocab_size=11, max_seq_len=8, attention_n_heads=2, attention_n_kv_heads=1,
        activation_hidden_dim=6,
    )  # fmt: skip
    whole = language_objective(as_scorer(Decoder(config)), model_rows, rows_at_once=3)
    split = language_objective(as_scorer(Decoder(config)), model_rows, rows_at_once=2)
    assert whole.n == split.n == 24
    assert whole.loss() == pytest.approx(split.loss(), rel=1e-6)
    torch.testing.assert_close(whole.gradient(), split.gradient(), rtol=1e-4, atol=1e-7)


def test_local_learning_coefficient_of_a_regular_minimum_is_half_the_dimension():
    d, n = 100, 1000
    objective = quadratic(np.diag(np.linspace(0.5, 2.0, d)), np.zeros(d), n)
    settings = Langevin(step_size=5e-4, localisation=0.0, chains=2, burn_in=100, draws=400)
    found = local_learning(objective, settings, seed=0)
    assert found.n_beta == pytest.approx(n / math.log(n))
    assert found.coefficient.value == pytest.approx(d / 2, rel=0.08)
    assert local_learning(objective, settings, seed=0) == found
    assert not flat(objective.parameters).any()


def test_the_local_learning_coefficient_counts_the_directions_that_matter():
    half = quadratic(np.diag([1.0] * 50 + [0.0] * 50), np.zeros(100))
    settings = Langevin(step_size=5e-4, localisation=1.0, chains=2, burn_in=100, draws=300)
    assert local_learning(half, settings).coefficient.value == pytest.approx(25, rel=0.1)
    wild = Langevin(step_size=1e3, draws=200, burn_in=200)
    assert local_learning(half, wild).coefficient.status == "nonfinite"
