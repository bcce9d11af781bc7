"""Products by oneDNN are torch's own products and derivatives, equal bits each time."""

import pytest
import torch
import torch.nn.functional as F

from pico.model.linear import linear

SHAPES = [((5, 7), 3), ((2, 9, 16), 40), ((1, 1, 3), 1), ((4, 300), 300)]


@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
def test_values_and_all_derivatives_are_those_of_torch(shape, outputs):
    x, weight = torch.randn(shape, dtype=torch.float32), torch.randn(outputs, shape[-1]) / shape[-1] ** 0.5
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)

    def loss(product, x, weight):
        return product(torch.tanh(product(x, weight)), weight.T).square().mean()

    found, expected = [], []
    for product, kept in ((linear, found), (F.linear, expected)):
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        first = torch.autograd.grad(loss(product, *leaves), leaves, create_graph=True)
        kept += [*first, *torch.autograd.grad(sum(one.sum() for one in first), leaves)]  # second derivatives too
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_only_what_is_asked_for_is_differentiated():
    x, weight = torch.randn(4, 6), torch.randn(5, 6, requires_grad=True)
    linear(x, weight).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(weight.grad, x.sum(0).expand(5, 6))
    with torch.no_grad():
        assert not linear(x, weight).requires_grad


def test_equal_input_gives_equal_bits():
    x, weight = torch.randn(64, 200), torch.randn(96, 200)
    assert all(torch.equal(linear(x, weight), linear(x.clone(), weight.clone())) for _ in range(5))


def test_other_types_and_autocast_are_left_to_torch():
    x, weight = torch.randn(4, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    assert linear(x[:0], weight).shape == (0, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x.float(), weight.float()).dtype == torch.bfloat16
