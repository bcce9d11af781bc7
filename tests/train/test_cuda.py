"""On CUDA each optimizer resumes to the bit, and leaves out broken updates without waiting for the device.

Collected only where torch finds CUDA; see conftest.py.
"""

import pytest
import torch

from pico.train.batches import Batches
from pico.train.loop import train
from pico.train.parallel import World, parallelize, reproducible
from pico.train.recipe import Recipe
from pico.train.spec import run_identity
from pico.train.step import TrainStep

from .conftest import OPTIMIZERS, contents, curve, make_spec, with_optimizer

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_is_the_undisturbed_one_to_the_bit(name, precision, tokens, tmp_path):
    spec = with_optimizer(make_spec(device="cuda", precision=precision), name)
    same, asked = run_identity(spec, tokens), iter(range(10**9))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    assert train(spec, tokens, whole, same, world=World(device=CUDA))
    assert not train(spec, tokens, broken, same, world=World(device=CUDA), stop=lambda: next(asked) >= 7)
    assert train(spec, tokens, broken, same, world=World(device=CUDA))
    assert contents(broken / "model") == contents(whole / "model")
    assert curve(broken) == curve(whole)
    assert curve(whole)[-1].train_loss < curve(whole)[0].train_loss - 0.05


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_never_waits_for_the_device_and_leaves_broken_ones_out(name, tokens):
    spec = with_optimizer(make_spec(device="cuda", on_nonfinite="skip", gradient_clip=1.0), name)
    recipe = Recipe(spec, Batches(spec, tokens))
    with reproducible(1, spec.seed):
        model = parallelize(recipe.build_model(), recipe, World(device=CUDA), "none")
        step = TrainStep(recipe, model, 8 * 16, torch.enable_grad)
        batch = tuple(one.pin_memory() for one in recipe.batch(0, slice(0, 8)))
        step(0, batch)  # lays out what is laid out once
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(1, batch)
            before = {key: one.detach().clone() for key, one in step.optimizer_tensors().items()}
            weights = {key: one.detach().clone() for key, one in model.parameters.items()}
            recipe.loss = lambda *some: Recipe.loss(recipe, *some) * float("nan")
            step(2, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(one, before[key]) for key, one in step.optimizer_tensors().items())
    assert all(torch.equal(one, weights[key]) for key, one in model.parameters.items())
