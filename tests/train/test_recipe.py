"""The seam holds: ReLoRA and an episodic objective are a class each, resume to the bit, and leave plain checkpoints."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pico.checkpoint import checkpoints
from pico.config import Schedule
from pico.errors import PicoError
from pico.model import Decoder, load_decoder
from pico.model.linear import Linear, linear
from pico.train.loop import train
from pico.train.recipe import Recipe, decoder_of
from pico.train.run import pretrain
from pico.train.spec import run_identity

from .conftest import contents, curve, make_spec


class LowRank(nn.Module):
    """A frozen matrix plus the product of two thin ones, which are trained."""

    def __init__(self, whole: Linear, rank: int, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(whole.weight.detach().clone(), requires_grad=False)
        self.down = nn.Parameter(torch.empty(rank, whole.in_features))
        self.up = nn.Parameter(torch.zeros(whole.out_features, rank))
        self.draw(seed)

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        drawn = torch.empty(self.down.shape).normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
        self.down.copy_(drawn)

    def merged(self) -> torch.Tensor:
        return self.weight + self.up @ self.down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight) + linear(linear(x, self.down), self.up)


class ReLoRA(Recipe):
    """High-rank training by low-rank updates (arXiv 2307.05695): merged, drawn anew and forgotten every few updates."""

    rank, every = 1, 4

    def build_model(self):
        model = super().build_model()
        for number, layer in enumerate(model.layers):
            for part, name in ((layer.attention, "q_proj"), (layer.attention, "v_proj"), (layer.swiglu, "w_0")):
                setattr(part, name, LowRank(getattr(part, name), self.rank, seed=number))
        return model

    def export(self, weights):
        merged = {name: one for name, one in weights.items() if not name.endswith((".up", ".down"))}
        for name in weights:
            if name.endswith(".up"):
                base = name.removesuffix(".up")
                merged[f"{base}.weight"] = weights[f"{base}.weight"] + weights[name] @ weights[f"{base}.down"]
        return merged

    @torch.no_grad()
    def after_update(self, update, state):
        if (update + 1) % self.every:
            return
        for module in state.model.modules():
            if isinstance(module, LowRank):
                module.weight.copy_(module.merged())
                module.up.zero_()
                module.draw(seed=update)
                for moments in (state.optimizers[0].state[one] for one in (module.up, module.down)):
                    for tensor in moments.values():
                        tensor.zero_()


class Episodes(Recipe):
    """Next tokens by turns with episodes (MAML, arXiv 1703.03400): a head is adapted on half of the rows, inside the
    graph, and judged on the other half. It starts each episode where it was, and learns where to start."""

    classes, inner_steps = 3, 2

    def build_model(self):
        model = nn.Module()
        model.decoder = super().build_model()
        model.head = nn.Linear(self.spec.decoder.d_model, self.classes, bias=False)
        with torch.no_grad():
            model.head.weight.normal_(0, 0.02, generator=torch.Generator().manual_seed(self.spec.seed))
        return model

    def export(self, weights):
        return {name.removeprefix("decoder."): one for name, one in weights.items() if name.startswith("decoder.")}

    def begin(self, state):
        self.episodes = 0
        self.average = torch.zeros(())

    def batch(self, update, shard):
        """Rows, whether they are an episode, and the class of each: what its last token is, modulo."""
        (rows,) = super().batch(update, shard)
        episode = torch.rand((), generator=torch.Generator().manual_seed(update)) < 0.5
        return rows, episode.expand(len(rows)), rows[:, -1] % self.classes

    def loss(self, model, rows, episode, labels):
        if not episode[0]:
            return super().loss(model.decoder, rows) + 0.0 * model.head.weight.sum()
        states = model.decoder.hidden(rows[:, :-1])[:, -1]
        support, query = slice(0, len(rows) // 2), slice(len(rows) // 2, None)
        head = model.head.weight
        for _ in range(self.inner_steps):
            inner = F.cross_entropy(states[support] @ head.T, labels[support])
            (slope,) = torch.autograd.grad(inner, head, create_graph=True)
            head = head - slope / (1 + self.episodes)
        judged = F.cross_entropy(states[query] @ head.T, labels[query])
        self.average.lerp_(judged.detach(), 0.1)
        return judged * rows[:, 1:].numel() + 0.0 * model.decoder.de_embedding_proj.weight.sum()

    def after_update(self, update, state):
        self.episodes += bool(self.batch(update, slice(0, 1))[1])

    def tensors(self):
        return {"average": self.average}

    def values(self):
        return {"episodes": self.episodes}

    def load_values(self, values):
        self.episodes = values["episodes"]


SPEC = make_spec(micro_batch_size=8)
JAGGED = dataclasses.replace(
    SPEC,
    schedule=Schedule(
        kind="jagged_cosine", warmup_steps=2, final_fraction=0.1, restart_every=4, restart_warmup_steps=2
    ),
)
CASES = [(ReLoRA, JAGGED), (Episodes, SPEC)]


def interrupted(recipe: type[Recipe], spec, tokens: Path, work: Path, after: int) -> None:
    work.mkdir()
    same, asked = run_identity(spec, tokens, recipe.identity()), iter(range(10**9))
    assert not train(spec, tokens, work, same, recipe=recipe, stop=lambda: next(asked) >= after)
    assert train(spec, tokens, work, same, recipe=recipe)


@pytest.mark.parametrize(("recipe", "spec"), CASES)
def test_a_resumed_run_is_the_undisturbed_one_to_the_bit(recipe, spec, tokens, tmp_path):
    whole = pretrain(spec, tokens, runs=tmp_path, recipe=recipe)
    for after in (0, 3, 8, 11):
        work = tmp_path / f"broken-{after}"
        interrupted(recipe, spec, tokens, work, after)
        assert contents(work / "model") == contents(whole / "model")
        assert curve(work) == curve(whole)


@pytest.mark.parametrize(("recipe", "spec"), CASES)
def test_what_is_published_is_a_plain_decoder_of_the_measured_loss(recipe, spec, tokens, tmp_path):
    whole = pretrain(spec, tokens, runs=tmp_path, recipe=recipe)
    last = checkpoints(whole / "model")[-1]
    decoder = load_decoder(last)
    assert set(last.model()) == set(Decoder(spec.decoder).state_dict())
    rows = Recipe(spec, recipe_batches(spec, tokens)).batches.all_heldout()
    with torch.no_grad():
        loss = decoder.loss(rows[:, :-1], rows[:, 1:])
    assert float(loss) == pytest.approx(curve(whole)[-1].heldout_loss, rel=1e-5)
    assert curve(whole)[-1].heldout_loss < curve(whole)[4].heldout_loss - 0.01
    assert last.dynamics("val", "gradients")["layers.0.attention.v_proj.weight"].shape == (8, 16)


def recipe_batches(spec, tokens):
    from pico.train.batches import Batches

    return Batches(spec, tokens)


def test_relora_changes_a_matrix_by_more_than_its_own_rank_and_by_no_more_than_its_restarts(tokens, tmp_path):
    found = checkpoints(pretrain(JAGGED, tokens, runs=tmp_path, recipe=ReLoRA) / "model")
    name = "layers.1.swiglu.w_0.weight"
    ranks = [int(torch.linalg.matrix_rank(one.model()[name] - found[0].model()[name], rtol=1e-4)) for one in found]
    assert dict(zip((one.step for one in found), ranks, strict=True)) == {0: 0, 1: 1, 2: 1, 4: 1, 5: 2, 10: 3, 12: 3}
    frozen = "layers.1.swiglu.w_1.weight"
    assert not torch.equal(found[0].model()[frozen], found[-1].model()[frozen]), "all else is trained whole"
    state = found[-1].optimizer()
    assert not state[f"layers.1.swiglu.w_0.up{'.exp_avg'}"].any(), "reset with the last merge"
    assert "parameters.layers.1.swiglu.w_0.down" in state


def test_state_of_a_recipe_is_kept_with_its_checkpoints_alone(undisturbed, tokens, tmp_path):
    last = checkpoints(pretrain(SPEC, tokens, runs=tmp_path, recipe=Episodes) / "model")[-1]
    assert 0 < last.trainer["recipe"]["episodes"] < 12
    assert last.optimizer()["recipe.average"] > 0
    assert last.optimizer()["parameters.head.weight"].shape == (3, 16)
    plain = checkpoints(undisturbed[1] / "model")[-1]
    assert "recipe" not in plain.trainer
    assert "recipe" not in plain.trainer["identity"]
    assert all(name.endswith((".exp_avg", ".exp_avg_sq", ".step")) for name in plain.optimizer())


def test_a_checkpoint_of_another_recipe_is_refused(tokens, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    train(SPEC, tokens, work, run_identity(SPEC, tokens), stop=lambda: True)
    with pytest.raises(PicoError, match="recipe: None in the checkpoint"):
        train(SPEC, tokens, work, run_identity(SPEC, tokens, Episodes.identity()), recipe=Episodes)


def test_a_model_without_a_decoder_is_refused():
    with pytest.raises(PicoError, match="without a Decoder in it"):
        decoder_of(nn.Linear(2, 2))


def test_the_page_on_training_has_an_example_that_runs(tokens, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    file = tmp_path / "averaged.py"
    file.write_text(code)
    names: dict = {"__name__": "averaged"}
    exec(compile(code, str(file), "exec"), names)
    averaged: type[Recipe] = names["Averaged"]
    averaged.identity = classmethod(lambda cls: {"class": "Averaged"})  # code of a string has no file
    whole = pretrain(SPEC, tokens, runs=tmp_path, recipe=averaged)
    interrupted(averaged, SPEC, tokens, tmp_path / "broken", 7)
    assert contents(tmp_path / "broken" / "model") == contents(whole / "model")
    plain = pretrain(SPEC, tokens, runs=tmp_path)
    ours, theirs = (checkpoints(work / "model")[-1] for work in (whole, plain))
    name = "layers.0.swiglu.w_0.weight"
    assert torch.equal(ours.optimizer()[f"parameters.{name}"], theirs.model()[name]), "training itself is the same"
    assert not torch.equal(ours.model()[name], theirs.model()[name])
