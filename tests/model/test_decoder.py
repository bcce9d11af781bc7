"""The decoder is the published one; it is causal, starts as stated, and refuses shapes that do not fit."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from pico.checkpoint import write_checkpoint
from pico.errors import PicoError
from pico.model import Decoder, DecoderConfig, load_decoder
from pico.model.cross_entropy import CHUNK_ELEMENTS, linear_cross_entropy
from pico.model.decoder import load_weights

GOLDEN = Path(__file__).parents[1] / "golden" / "decoder_gqa.safetensors"
SMALL = DecoderConfig(d_model=32, n_layers=3, vocab_size=61, max_seq_len=24, attention_n_heads=4,
                      attention_n_kv_heads=2, activation_hidden_dim=64)  # fmt: skip


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = DecoderConfig.from_dict(json.loads(file.metadata()["config"]))
    model = Decoder(config)
    weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    load_weights(model, weights, where="golden")
    return model, tensors


def test_equals_the_published_decoder(golden):
    model, tensors = golden
    inputs, targets = tensors["input_ids"][:, :-1], tensors["input_ids"][:, 1:]
    torch.testing.assert_close(model(inputs), tensors["logits"], atol=2e-5, rtol=0)
    model.zero_grad()
    loss = model.loss(inputs, targets)
    loss.backward()
    torch.testing.assert_close(loss.detach(), tensors["loss"], atol=1e-5, rtol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.norm(), tensors[f"grad_norm.{name}"], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("d_model", "parameters"),
    [(96, 11_282_784), (384, 64_595_328), (768, 181_095_168), (1536, 569_808_384)],
)
def test_published_sizes(d_model, parameters):
    config = DecoderConfig(d_model, 12, 50304, 2048, 12, 4, 4 * d_model)
    matrices = 2 * d_model * config.head_dim * (12 + 4) + 3 * d_model * config.activation_hidden_dim
    assert 2 * config.vocab_size * d_model + 12 * (matrices + 2 * d_model) + d_model == parameters
    if d_model == 96:
        assert sum(p.numel() for p in Decoder(config).parameters()) == parameters


def test_loss_is_cross_entropy_of_the_logits_and_so_are_its_gradients(monkeypatch):
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 1)  # 16 rows a chunk: several chunks, the last one short
    model = Decoder(SMALL, seed=3)
    ids = torch.randint(0, 61, (3, 24))
    inputs, targets = ids[:, :-1], ids[:, 1:]
    plain = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    plain.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    loss = model.loss(inputs, targets)
    loss.backward()
    torch.testing.assert_close(loss, plain)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-7, rtol=1e-4)
    each = model.loss(inputs, targets, "none")
    assert each.shape == targets.shape
    assert not each.requires_grad
    torch.testing.assert_close(each.sum(), model.loss(inputs, targets, "sum").detach())


def test_loss_of_uniform_logits_is_log_of_the_vocabulary():
    loss = linear_cross_entropy(torch.zeros(5, 4), torch.randn(1000, 4), torch.arange(5))
    assert loss.item() == pytest.approx(math.log(1000))


def test_no_position_sees_what_follows():
    model = Decoder(SMALL, seed=1)
    ids = torch.randint(0, 61, (2, 20))
    changed = ids.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 61
    before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12], atol=0, rtol=0)
    assert (before[:, 12:] != after[:, 12:]).any(-1).all()


def test_rotary_scores_depend_on_distance_alone():
    from pico.model.decoder import rotary_table, rotate

    table = rotary_table(SMALL)
    q, k = torch.randn(2, 1, 1, 1, SMALL.head_dim).unbind(0)

    def score(i: int, j: int) -> float:
        return (rotate(q, table[i : i + 1]) * rotate(k, table[j : j + 1])).sum().item()

    assert score(3, 1) == pytest.approx(score(20, 18), abs=1e-5)
    assert score(0, 0) == pytest.approx((q * k).sum().item(), abs=1e-6)
    quarter = torch.tensor([0.0, 1.0]).view(1, 1, 2)  # cos and sin of a right angle
    turned = rotate(torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), quarter)
    torch.testing.assert_close(turned.flatten(), torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)


def test_initialisation_is_as_stated_and_a_function_of_the_seed():
    config = DecoderConfig(256, 6, 2000, 16, 4, 2, 512)
    state = torch.get_rng_state()
    model = Decoder(config, seed=7)
    assert torch.equal(state, torch.get_rng_state())
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all()
        else:
            scale = math.sqrt(12) if name.endswith(("o_proj.weight", "w_2.weight")) else 1.0
            assert parameter.std().item() == pytest.approx(0.02 / scale, rel=0.02)
            assert abs(parameter.mean().item()) < 3 * 0.02 / math.sqrt(parameter.numel())
    same, other = Decoder(config, seed=7), Decoder(config, seed=8)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert not torch.equal(model.embedding_proj.weight, other.embedding_proj.weight)


def test_rotary_tables_belong_to_the_instance_and_are_not_saved():
    first = Decoder(SMALL)
    second = Decoder(DecoderConfig(**{**SMALL.to_dict(), "position_emb_theta": 100.0}))
    assert not torch.equal(first.rotary, second.rotary)
    assert "rotary" not in first.state_dict()
    assert {name.split(".")[0] for name in first.state_dict()} == {
        "embedding_proj", "layers", "output_norm", "de_embedding_proj",
    }  # fmt: skip


def test_checkpoint_round_trip(tmp_path):
    model = Decoder(SMALL, seed=5)
    checkpoint = write_checkpoint(tmp_path / "step_00000003", model=model.state_dict(), config=SMALL.to_dict(),
                                  trainer={"step": 3})  # fmt: skip
    loaded = load_decoder(checkpoint)
    assert not loaded.training
    assert loaded.config == SMALL
    ids = torch.randint(0, 61, (2, 9))
    assert torch.equal(loaded(ids), model(ids))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 30}, "d_model = 30 is not a multiple of attention_n_heads = 4"),
        ({"d_model": 12}, "d_model = 12 is not a multiple of twice attention_n_heads = 4"),
        ({"attention_n_kv_heads": 3}, "attention_n_heads = 4 is not a multiple of attention_n_kv_heads = 3"),
        ({"n_layers": 0}, "n_layers = 0: Input should be greater than 0"),
        ({"norm_eps": float("nan")}, "norm_eps = nan: "),
        ({"n_layer": 2}, "unknown or missing keys: n_layer"),
    ],
)
def test_a_wrong_shape_is_refused_by_name(change, message):
    with pytest.raises(PicoError, match=message):
        DecoderConfig.from_dict({**SMALL.to_dict(), **change})


def test_wrong_weights_and_long_inputs_are_refused_by_name():
    model = Decoder(SMALL)
    weights = dict(model.state_dict())
    weights["output_norm.weight"] = torch.ones(5)
    with pytest.raises(PicoError, match=r"output_norm.weight has shape \(5,\)"):
        load_weights(model, weights, where="x")
    with pytest.raises(PicoError, match="25 tokens a row"):
        model(torch.zeros(1, 25, dtype=torch.int64))
