"""AdamW: decay on matrices only, and state that survives a round trip by name."""

import pytest
import torch

from pico.config import Optimizer
from pico.errors import PicoError
from pico.model import Decoder, DecoderConfig
from pico.train.optimizers import make_optimizer, optimizer_tensors
from pico.train.parallel import Whole, restore
from pico.train.world import World

CONFIG = DecoderConfig(16, 2, 31, 8, 2, 1, 32)
SETTINGS = Optimizer(lr=0.1, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.5)


def make(seed: int = 0):
    model = Decoder(CONFIG, seed=seed)
    return model, make_optimizer(dict(model.named_parameters()), SETTINGS)


def state_of(model, optimizer):
    return optimizer_tensors(dict(model.named_parameters()), optimizer)


def update(model, optimizer):
    ids = torch.arange(16).view(2, 8)
    model.loss(ids, ids).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_decay_shrinks_matrices_and_leaves_norms():
    model, optimizer = make()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1.0 if "norm" in name else 1 - 0.1 * 0.5
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_state_round_trip_continues_to_the_bit():
    model, optimizer = make()
    update(model, optimizer)
    state = {name: tensor.clone() for name, tensor in state_of(model, optimizer).items()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert state["output_norm.weight.step"] == 1
    assert len(state) == 3 * len(list(model.parameters()))
    other, its = make(seed=1)
    other.load_state_dict(weights)
    restore(state_of(other, its), state, Whole(other, World()), where="here")
    update(model, optimizer)
    update(other, its)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_state_of_another_model_is_refused_by_name():
    model, optimizer = make()
    state = dict(state_of(model, optimizer))
    state["output_norm.weight.exp_avg"] = torch.zeros(3)
    with pytest.raises(PicoError, match=r"output_norm.weight.exp_avg does not fit"):
        restore(state_of(model, optimizer), state, Whole(model, World()), where="here")


def test_a_broken_gradient_never_reaches_the_weights():
    model, optimizer = make()
    update(model, optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = {name: tensor.clone() for name, tensor in state_of(model, optimizer).items()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in state_of(model, optimizer).items())
