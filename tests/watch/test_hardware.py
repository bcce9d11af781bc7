"""Devices are known by their names, or measured."""

import pytest
import torch

from pico.watch.hardware import GPUS, find_peak, gpu_of


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
    peak = find_peak(torch.device("cpu"))
    assert not peak.published
    assert 1e8 < peak.flops < 1e15
