"""Without options the decoder is the plain one to the bit; each option does what its name says, and nothing else."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from decoder_options import departures

from pico.checkpoint import write_checkpoint
from pico.errors import PicoError
from pico.flops import count_parameters
from pico.model import Decoder, DecoderConfig, load_decoder
from pico.model import linear as products
from pico.model.decoder import rotary_table

PLAIN = DecoderConfig(d_model=32, n_layers=3, vocab_size=61, max_seq_len=24, attention_n_heads=4,
                      attention_n_kv_heads=2, activation_hidden_dim=64)  # fmt: skip
IDS = torch.randint(0, 61, (2, 20), generator=torch.Generator().manual_seed(0))


def textbook(config: DecoderConfig, weights: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """The published decoder's logits, operation by operation."""
    table = torch.view_as_complex(rotary_table(config)[: ids.shape[1]])[:, None]

    def norm(x, name):
        return F.rms_norm(x, (config.d_model,), weights[name], config.norm_eps)

    def heads(x, name):
        return F.linear(x, weights[name]).unflatten(-1, (-1, config.head_dim))

    def turned(x):
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * table).flatten(-2)

    x = F.embedding(ids, weights["embedding_proj.weight"])
    for layer in range(config.n_layers):
        own = f"layers.{layer}."
        y = norm(x, f"{own}attention_norm.weight")
        q, k, v = (heads(y, f"{own}attention.{name}_proj.weight") for name in "qkv")
        q, k, v = turned(q).transpose(1, 2), turned(k).transpose(1, 2), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(-2)
        x = x + F.linear(y, weights[f"{own}attention.o_proj.weight"])
        y = norm(x, f"{own}swiglu_norm.weight")
        y = F.silu(F.linear(y, weights[f"{own}swiglu.w_0.weight"])) * F.linear(y, weights[f"{own}swiglu.w_1.weight"])
        x = x + F.linear(y, weights[f"{own}swiglu.w_2.weight"])
    return F.linear(norm(x, "output_norm.weight"), weights["de_embedding_proj.weight"])


def test_the_default_is_the_textbook_decoder_to_the_bit(monkeypatch):
    model = Decoder(PLAIN, seed=11)
    weights = model.state_dict()
    with torch.no_grad():
        expected = textbook(PLAIN, weights, IDS)
        torch.testing.assert_close(model(IDS), expected, rtol=1e-6, atol=1e-6)
        monkeypatch.setattr(products, "ONEDNN", False)  # the same products as the textbook's
        assert torch.equal(model(IDS), expected)


def test_the_default_starts_from_the_same_bits_under_the_same_names():
    own = ("attention_norm", "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj",
           "swiglu_norm", "swiglu.w_0", "swiglu.w_1", "swiglu.w_2")  # fmt: skip
    names = ["embedding_proj", *(f"layers.{layer}.{name}" for layer in range(3) for name in own), "output_norm",
             "de_embedding_proj"]  # fmt: skip
    state = Decoder(PLAIN, seed=11).state_dict()
    assert list(state) == [f"{name}.weight" for name in names]
    generator = torch.Generator().manual_seed(11)
    for name, weight in state.items():
        if name.endswith("norm.weight"):
            expected = torch.ones(32)
        else:
            std = 0.02 / math.sqrt(6) if name.endswith(("o_proj.weight", "w_2.weight")) else 0.02
            expected = torch.empty(weight.shape).normal_(0.0, std, generator=generator)
        assert torch.equal(weight, expected), name


@pytest.mark.parametrize(
    "change",
    [
        *departures(),
        {"norm": "layernorm", "qk_norm": True, "positions": "learned", "tied_embeddings": True, "activation": "relu"},
    ],
)  # fmt: skip
def test_an_option_changes_the_function_and_keeps_what_a_decoder_does(change, tmp_path):
    config = dataclasses.replace(PLAIN, **change)
    model = Decoder(config, seed=11)
    assert not torch.equal(model(IDS), Decoder(PLAIN, seed=11)(IDS))
    assert count_parameters(config).total == sum(parameter.numel() for parameter in model.parameters())
    assert set(Decoder(PLAIN).state_dict()) <= set(model.state_dict())
    changed = IDS.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 61
    torch.testing.assert_close(model(IDS)[:, :12], model(changed)[:, :12], atol=0, rtol=0)
    model.loss(IDS[:, :-1], IDS[:, 1:]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert DecoderConfig.from_dict(config.to_dict()) == config
    saved = write_checkpoint(tmp_path / "step_00000001", model=model.state_dict(), config=config.to_dict(),
                             trainer={"step": 1})  # fmt: skip
    assert torch.equal(load_decoder(saved)(IDS), model(IDS))


def test_layer_norm_and_query_norm_do_what_they_say():
    model = Decoder(dataclasses.replace(PLAIN, norm="layernorm"), seed=1)
    x = torch.randn(2, 5, 32) * 3 + 1
    out = model.output_norm(x)
    torch.testing.assert_close(out.mean(-1), torch.zeros(2, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.std(-1, unbiased=False), torch.ones(2, 5), atol=1e-4, rtol=0)
    attention = Decoder(dataclasses.replace(PLAIN, qk_norm=True), seed=1).layers[0].attention
    q, k, v = attention.project(x, rotary_table(PLAIN)[:5])
    for part in (q, k):
        torch.testing.assert_close(part.square().mean(-1), torch.ones(part.shape[:-1]), atol=1e-2, rtol=0)
    assert (v.square().mean(-1) < 0.5).all()


def test_without_positions_the_order_of_what_came_before_does_not_matter():
    model = Decoder(dataclasses.replace(PLAIN, positions="none", n_layers=1), seed=1)
    shuffled = IDS.clone()
    shuffled[:, :19] = IDS[:, torch.randperm(19, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(model(IDS)[:, -1], model(shuffled)[:, -1], atol=1e-5, rtol=1e-4)


def test_tied_embeddings_are_one_matrix_also_after_a_move():
    model = Decoder(dataclasses.replace(PLAIN, tied_embeddings=True), seed=1).to("cpu").float()
    assert model.de_embedding_proj.weight is model.embedding_proj.weight
    assert "de_embedding_proj.weight" not in dict(model.named_parameters())
    assert "de_embedding_proj.weight" in model.state_dict()  # files are read as those of any other decoder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "batchnorm"}, "norm = 'batchnorm': Input should be 'rmsnorm' or 'layernorm'"),
        ({"activation": "swiglu"}, "activation = 'swiglu': "),
        ({"positions": "alibi"}, "positions = 'alibi': "),
        ({"qk_norm": "yes"}, "qk_norm = 'yes': "),
        ({"qk_nrom": True}, r"qk_nrom is not a known setting; did you mean qk_norm\?"),
    ],
)
def test_an_unknown_option_is_refused_by_name(change, message):
    with pytest.raises(PicoError, match=message):
        dataclasses.replace(PLAIN, **change)


def test_a_configuration_from_before_the_options_is_the_default():
    values = {name: value for name, value in PLAIN.to_dict().items() if name != "norm" and "qk" not in name}
    assert DecoderConfig.from_dict(values) == PLAIN
