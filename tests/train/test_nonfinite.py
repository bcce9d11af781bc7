"""A loss or gradient that is not finite never reaches the weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pico.checkpoint import checkpoints
from pico.errors import PicoError
from pico.train.batches import Batches
from pico.train.curve import write_csv
from pico.train.loop import train
from pico.train.recipe import Recipe
from pico.train.spec import run_identity

from .conftest import OPTIMIZERS, curve, make_spec, with_optimizer


class Explosive(Recipe):
    """A learning rate at which the weights of step 6 are far from anything."""

    def learning_rate(self, update, peak):
        return 1e38 if update == 5 else super().learning_rate(update, peak)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loss_that_is_not_finite_stops_at_its_step_and_is_not_stepped_on(tmp_path, tokens, name):
    spec, broken_at = with_optimizer(make_spec(), name), 6
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(PicoError, match=f"step {broken_at + 1} is (nan|inf)"):
        train(spec, tokens, work, run_identity(spec, tokens), recipe=Explosive)
    assert checkpoints(work / "model")[-1].step == 5
    assert all(np.isfinite([p.train_loss, p.gradient_norm]).all() for p in curve(work))
    saved = load_file(work / "nonfinite" / f"step_{broken_at + 1:08d}.safetensors")["input_ids"]
    assert torch.equal(saved, Batches(spec, tokens).of_update(broken_at))


def breaking(spec, tokens, updates) -> type[Recipe]:
    """A recipe whose loss is infinite on the batches of these updates, whenever they come."""
    batches = Batches(spec, tokens)
    broken = {tuple(row.tolist()) for update in updates for row in batches.of_update(update)}

    class Breaking(Recipe):
        def loss(self, model, *batch):
            loss = super().loss(model, *batch)
            return loss * float("inf") if tuple(batch[0][0].tolist()) in broken else loss

    return Breaking


def test_an_update_that_is_not_finite_is_left_out_where_asked(tmp_path, tokens):
    spec, told = make_spec(on_nonfinite="skip"), []
    work = tmp_path / "work"
    work.mkdir()
    assert train(spec, tokens, work, run_identity(spec, tokens), recipe=breaking(spec, tokens, [5]), report=told.append)
    assert [p.step for p in curve(work) if not np.isfinite(p.train_loss)] == [6]
    assert any("update left out: the loss of step 6 is inf" in event.get("warning", "") for event in told)
    last = checkpoints(work / "model")[-1]
    assert last.optimizer()["output_norm.weight.step"] == spec.training.steps - 1
    assert all(value.isfinite().all() for value in last.model().values())
    saved = load_file(work / "nonfinite" / "step_00000006.safetensors")["input_ids"]
    assert torch.equal(saved, Batches(spec, tokens).of_update(5))
    write_csv(curve(work), 128, tmp_path / "curve.csv")
    assert (tmp_path / "curve.csv").read_text().splitlines()[6].startswith("6,768,0.0073,,,")


def test_left_out_updates_do_not_go_on_for_ever(tmp_path, tokens):
    spec = make_spec(on_nonfinite="skip", steps=20)
    (tmp_path / "work").mkdir()
    with pytest.raises(PicoError, match="step 13 is inf"):
        train(spec, tokens, tmp_path / "work", run_identity(spec, tokens), recipe=breaking(spec, tokens, range(3, 20)))
