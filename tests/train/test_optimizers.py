"""Each optimizer is that of its paper, changes nothing where a gradient is broken, and resumes to the bit."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from pico.checkpoint import checkpoints
from pico.config import Training
from pico.errors import PicoError
from pico.flops import count_parameters
from pico.model import Decoder
from pico.optimizers import OPTIMIZERS as KINDS
from pico.train.batches import Batches
from pico.train.loop import train
from pico.train.parallel import Sharded, World, parallelize
from pico.train.recipe import Recipe
from pico.train.run import pretrain
from pico.train.spec import RunSpec, run_identity
from pico.train.step import TrainStep, restore, step_unless

from .conftest import OPTIMIZERS, contents, curve, make_spec, with_optimizer

STEPS, RATE = 6, 0.03
NAMES = ["embedding_proj.weight", "layers.0.swiglu.w_0.weight", "output_norm.weight"]
SHAPES = [(7, 4), (6, 4), (4,)]


def values(seed: int) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(seed)
    drawn = (random.normal(size=shape) for shape in SHAPES)
    return {name: torch.tensor(one, dtype=torch.float32) for name, one in zip(NAMES, drawn, strict=True)}


def trained(name: str) -> dict[str, torch.Tensor]:
    """The weights after STEPS updates with given gradients, by our optimizers."""
    parameters = {key: torch.nn.Parameter(one) for key, one in values(0).items()}
    optimizers = OPTIMIZERS[name].model_copy(update={"lr": RATE}).build(parameters)
    for step in range(STEPS):
        for key, gradient in values(step + 1).items():
            parameters[key].grad = gradient
        for optimizer in optimizers:
            step_unless(torch.zeros(()), optimizer)
    return {key: one.detach() for key, one in parameters.items()}


def adamw(weight, gradients, s, decay):
    first = second = 0.0
    for step, gradient in enumerate(gradients, start=1):
        first = s.beta1 * first + (1 - s.beta1) * gradient
        second = s.beta2 * second + (1 - s.beta2) * gradient**2
        mean, spread = first / (1 - s.beta1**step), np.sqrt(second / (1 - s.beta2**step))
        weight = weight * (1 - RATE * decay) - RATE * mean / (spread + s.eps)
    return weight


def sgd(weight, gradients, s, decay):
    momentum = 0.0
    for gradient in gradients:
        gradient = gradient + decay * weight
        momentum = s.momentum * momentum + gradient
        weight = weight - RATE * (gradient + s.momentum * momentum)
    return weight


def lion(weight, gradients, s, decay):
    average = 0.0
    for gradient in gradients:
        sign = np.sign(s.beta1 * average + (1 - s.beta1) * gradient)
        weight = weight - RATE * (sign + decay * weight)
        average = s.beta2 * average + (1 - s.beta2) * gradient
    return weight


def muon(weight, gradients, s, decay):
    """Newton-Schulz by the polynomial of Jordan's post, on singular values, where it is a function of each."""
    momentum = 0.0
    for gradient in gradients:
        momentum = s.momentum * momentum + (1 - s.momentum) * gradient
        left, singular, right = np.linalg.svd((1 - s.momentum) * gradient + s.momentum * momentum, full_matrices=False)
        singular = singular / np.linalg.norm(singular)
        for _ in range(5):
            singular = 3.4445 * singular - 4.7750 * singular**3 + 2.0315 * singular**5
        weight = weight * (1 - RATE * decay) - 0.2 * RATE * np.sqrt(max(weight.shape)) * (left * singular) @ right
    return weight


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_those_of_the_paper_in_float64(name):
    rules = {"adamw": adamw, "sgd": sgd, "lion": lion, "muon": adamw}
    found, settings, start = trained(name), OPTIMIZERS[name], values(0)
    for key in NAMES:
        rule = muon if name == "muon" and key == "layers.0.swiglu.w_0.weight" else rules[name]
        gradients = [values(step + 1)[key].numpy().astype(np.float64) for step in range(STEPS)]
        decay = settings.weight_decay if start[key].dim() == 2 else 0.0
        expected = rule(start[key].numpy().astype(np.float64), gradients, settings, decay)
        # torch's Newton-Schulz works in bfloat16, and its factors reach 5.
        tolerance = 0.1 * 0.2 * RATE * STEPS if rule is muon else 1e-6
        np.testing.assert_allclose(found[key], expected, atol=tolerance, rtol=1e-5)
        assert np.abs(found[key].numpy() - start[key].numpy()).max() > 10 * tolerance or rule is muon


def train_step(recipe: type[Recipe], spec: RunSpec, tokens) -> TrainStep:
    made = recipe(spec, Batches(spec, tokens))
    model = parallelize(made.build_model(), made, World(), "none")
    return TrainStep(made, model, 8 * 16, torch.enable_grad)


def with_stock(kind: type[torch.optim.Optimizer], lr: float, **settings) -> type[Recipe]:
    """A recipe with an optimizer of torch's, which lays its state out in its first step."""

    class Stock(Recipe):
        def build_optimizers(self, parameters):
            return [kind(parameters.values(), lr=lr, **settings)]

    return Stock


RECIPES = {
    **{name: (Recipe, name) for name in OPTIMIZERS},
    "Adam": (with_stock(torch.optim.Adam, 0.01, fused=False), "adamw"),
    "RMSprop": (with_stock(torch.optim.RMSprop, 0.001, momentum=0.9), "adamw"),
    "plain SGD": (with_stock(torch.optim.SGD, 1.0, foreach=False), "adamw"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_broken_gradient_reaches_neither_weights_nor_state(name, tokens):
    recipe, settings = RECIPES[name]
    step = train_step(recipe, with_optimizer(make_spec(on_nonfinite="skip"), settings), tokens)
    batch = step.recipe.batch(0, slice(0, 8))
    true_loss = step.recipe.loss
    for update in range(4):
        broken = update != 1  # the very first one, and two after a good one
        before = copies(step)
        step.recipe.loss = (lambda *some: true_loss(*some) * float("nan")) if broken else true_loss
        step(update, batch)
        after = copies(step)
        same = before.keys() == after.keys() and all(torch.equal(after[key], before[key]) for key in after)
        assert same == broken, update
        assert all(tensor.isfinite().all() for tensor in after.values())


def copies(step: TrainStep) -> dict[str, torch.Tensor]:
    return {key: one.detach().clone() for key, one in (step.model.parameters | step.optimizer_tensors()).items()}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("after", [0, 3, 7])
def test_a_resumed_run_is_the_undisturbed_one_to_the_bit(name, after, tokens, tmp_path):
    recipe, settings = RECIPES[name]
    spec = with_optimizer(make_spec(), settings)
    whole = pretrain(spec, tokens, runs=tmp_path, recipe=recipe)
    assert curve(whole)[-1].train_loss < curve(whole)[0].train_loss - 0.05
    work, asked = tmp_path / "broken", iter(range(10**9))
    work.mkdir()
    same = run_identity(spec, tokens, recipe.identity())
    assert not train(spec, tokens, work, same, recipe=recipe, stop=lambda: next(asked) >= after)
    assert train(spec, tokens, work, same, recipe=recipe)
    assert contents(work / "model") == contents(whole / "model")
    assert curve(work) == curve(whole)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_matrices_alone_decay(name):
    """Without a gradient AdamW and Lion shrink matrices by lr x weight_decay, and nothing moves a norm."""
    model = Decoder(make_spec().decoder)
    parameters = dict(model.named_parameters())
    before = {key: one.detach().clone() for key, one in parameters.items()}
    settings = OPTIMIZERS[name]
    for one in parameters.values():
        one.grad = torch.zeros_like(one)
    for optimizer in settings.build(parameters):
        optimizer.step()
    share = settings.lr * settings.weight_decay * (1 + getattr(settings, "momentum", 0) if name == "sgd" else 1)
    for key, one in parameters.items():
        torch.testing.assert_close(one.detach(), before[key] * (1.0 if "norm" in key else 1 - share))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_as_large_as_the_settings_say(name, tokens):
    spec = with_optimizer(make_spec(), name)
    state = train_step(Recipe, spec, tokens).optimizer_tensors().values()
    counts = count_parameters(spec.decoder)
    matrices = counts.attention + counts.mlp
    expected = spec.optimizer.state_elements(matrices, counts.total - matrices)
    assert sum(one.numel() for one in state if one.dim()) == expected


def test_state_of_another_model_is_refused_by_name(tokens):
    step = train_step(Recipe, make_spec(), tokens)
    for wrong in ({"output_norm.weight.exp_avg": torch.zeros(3)}, {"output_norm.weight.momentum": torch.zeros(16)}):
        state = step.optimizer_tensors() | wrong
        with pytest.raises(PicoError, match=rf"{next(iter(wrong))} does not fit"):
            step.restore_optimizers(state, where="here")
    with pytest.raises(PicoError, match=r"output_norm\.weight does not fit"):
        restore(step.model.parameters, {**step.model.parameters, "output_norm.weight": torch.zeros(3)}, step.model,
                where="here")  # fmt: skip


def test_state_that_is_no_tensor_is_refused(tokens):
    step = train_step(Recipe, make_spec(), tokens)
    parameter = step.model.parameters["output_norm.weight"]
    step.optimizers[0].state[parameter]["updates"] = 3
    with pytest.raises(PicoError, match=r"AdamW keeps updates of output_norm\.weight as 3"):
        step.optimizer_tensors()


def test_muon_refuses_shards_before_anything_starts():
    training: Training = make_spec(workers=2, sharding="full", micro_batch_size=2).training
    with pytest.raises(PicoError, match=r"muon needs whole matrices.*sharding"):
        dataclasses.replace(make_spec(), training=training, optimizer=OPTIMIZERS["muon"])
    with pytest.raises(PicoError, match="Muon needs whole matrices"):  # one that a recipe builds
        Sharded.check_optimizers(None, [torch.optim.Muon([torch.nn.Parameter(torch.zeros(2, 2))])])  # type: ignore[arg-type]
    assert [name for name, kind in KINDS.items() if not kind.elementwise] == ["muon"]


def test_a_checkpoint_without_a_name_of_its_optimizer_is_adamws(undisturbed, tmp_path):
    """Those of before there was a choice."""
    trainer = checkpoints(shutil.copytree(undisturbed[1] / "model", tmp_path / "model"))[-1].trainer
    settings = {**trainer["identity"]["settings"]}
    assert settings["optimizer"].pop("name") == "adamw"
    settings["checkpoints"] = {**settings["checkpoints"], "rescue_seconds": 1000.0}
    assert RunSpec.from_dict(settings) == make_spec()
