"""The step is what a user of plain torch would write: accumulation, clipping, decay, rate and all."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pico.checkpoint import checkpoints
from pico.model import Decoder
from pico.train.batches import Batches
from pico.train.recipe import Recipe
from pico.train.run import pretrain
from pico.train.schedules import learning_rate

from .conftest import curve, make_spec


def plain_torch(spec, tokens) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """Losses and gradient norms of each update, and the weights at the end."""
    model = Decoder(spec.decoder, seed=spec.seed)
    matrices = [one for one in model.parameters() if one.dim() > 1]
    others = [one for one in model.parameters() if one.dim() <= 1]
    settings = spec.optimizer
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, foreach=False,
    )  # fmt: skip
    batches, found = Batches(spec, tokens), []
    for update in range(spec.training.steps):
        rows = batches.of_update(update)
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        limit = spec.training.gradient_clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(update, steps=spec.training.steps, peak=settings.lr, schedule=spec.schedule)
        optimizer.step()
        found.append((loss.item(), norm.item()))
    return found, {name: one.detach() for name, one in model.named_parameters()}


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("micro_batch_size", [2, 8])
def test_a_run_is_that_of_a_plain_loop(tokens, tmp_path, clip, micro_batch_size):
    spec = make_spec(gradient_clip=clip, micro_batch_size=micro_batch_size)
    expected, weights = plain_torch(spec, tokens)
    assert min(norm for _, norm in expected) > 0.05, "there is something to clip"
    work = pretrain(spec, tokens, runs=tmp_path)
    found = [(point.train_loss, point.gradient_norm) for point in curve(work)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    for name, tensor in checkpoints(work / "model")[-1].model().items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-4)


class Jump(Recipe):
    def learning_rate(self, update, peak):
        return 3.0 if update == 70 else super().learning_rate(update, peak)


def test_a_spike_is_said_while_training_goes_on(tokens, tmp_path):
    said: list[str] = []
    spec = make_spec(steps=76)
    work = pretrain(spec, tokens, runs=tmp_path, recipe=Jump, show=lambda one: said.append(one.get("warning", "")))
    assert len(curve(work)) == 76
    assert any("loss spike at step 72" in warning for warning in said), said
