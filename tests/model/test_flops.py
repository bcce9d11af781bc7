"""Counts are those of the textbook, and of the model; FLOPs are those that torch counts."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pico.flops import count_parameters, training_flops_per_token
from pico.model import Decoder, DecoderConfig

SHAPES = [DecoderConfig(32, 3, 61, 24, 4, 2, 64), DecoderConfig(48, 2, 100, 16, 3, 3, 40)]


@pytest.mark.parametrize(
    "config", [*SHAPES, replace(SHAPES[0], qk_norm=True, positions="learned", tied_embeddings=True)]
)
def test_counts_are_those_of_the_textbook(config):
    counts, width = count_parameters(config), config.d_model
    heads = config.attention_n_heads + config.attention_n_kv_heads
    assert counts.embedding == (config.vocab_size + config.max_seq_len * (config.positions == "learned")) * width
    assert counts.attention == config.n_layers * 2 * width * config.head_dim * heads
    assert counts.mlp == config.n_layers * 3 * width * config.activation_hidden_dim
    assert counts.norms == (2 * config.n_layers + 1) * width + config.qk_norm * config.n_layers * 2 * config.head_dim
    assert counts.unembedding == (0 if config.tied_embeddings else config.vocab_size * width)
    assert counts.total == sum(parameter.numel() for parameter in Decoder(config).parameters())


@pytest.mark.parametrize("config", SHAPES)
def test_flops_are_those_that_torch_counts(config):
    """The textbook step: attention's scores in full, all logits at once. Nothing is computed on device meta."""
    model = Decoder(config).to("meta")
    ids = torch.zeros((2, config.max_seq_len), dtype=torch.int64, device="meta")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    assert counter.get_total_flops() == ids.numel() * training_flops_per_token(config, config.max_seq_len)


def test_the_published_large_size():
    large = DecoderConfig(1536, 12, 50304, 2048, 12, 4, 6144)
    assert count_parameters(large).total == 569_808_384
    assert training_flops_per_token(large, 2048) == pytest.approx(3.41e9, rel=0.01)
