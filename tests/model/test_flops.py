"""Counts are the model's own; FLOPs are those that torch counts; devices are known by their names."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pico.flops import GPUS, count_parameters, gpu_of, peak_flops, training_flops_per_token
from pico.model import Decoder, DecoderConfig

SHAPES = [DecoderConfig(32, 3, 61, 24, 4, 2, 64), DecoderConfig(48, 2, 100, 16, 3, 3, 40)]


@pytest.mark.parametrize("config", SHAPES)
def test_counts_are_those_of_the_model(config):
    model = Decoder(config)
    counts = count_parameters(config)
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())
    named = dict(model.named_parameters())
    assert counts.embeddings == sum(p.numel() for name, p in named.items() if "embedding" in name)
    assert counts.attention == sum(p.numel() for name, p in named.items() if ".attention." in name)
    assert counts.mlp == sum(p.numel() for name, p in named.items() if ".swiglu." in name)
    assert counts.norms == sum(p.numel() for name, p in named.items() if name.endswith("norm.weight"))


@pytest.mark.parametrize("config", SHAPES)
def test_flops_are_those_that_torch_counts(config):
    """Of the textbook step: attention's scores in full, all logits at once. Nothing is computed on device meta."""
    model = Decoder(config).to("meta")
    ids = torch.zeros((2, config.max_seq_len), dtype=torch.int64, device="meta")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    assert counter.get_total_flops() == ids.numel() * training_flops_per_token(config, config.max_seq_len)


def test_the_published_large_size():
    large = DecoderConfig(1536, 12, 50304, 2048, 12, 4, 6144)
    assert count_parameters(large).total == 569_808_384
    assert training_flops_per_token(large, 2048) == pytest.approx(3.41e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "known_as"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-PCIE-40GB", "a100-40"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ],
)
def test_a_device_is_known_by_its_name(name, known_as):
    assert gpu_of(name) is GPUS[known_as]


def test_an_unknown_device_is_measured():
    assert gpu_of("NVIDIA Some Other 9000") is None
    peak = peak_flops(torch.device("cpu"))
    assert not peak.published
    assert 1e8 < peak.flops < 1e15
    assert peak_flops(torch.device("cpu")) == peak  # once
