"""Peak arithmetic of GPUs and of this machine, with which the progress of training is compared.

MFU (model FLOPs utilisation; PaLM, arXiv 2204.02311, appendix B) is the share of a machine's peak that goes into the
model's own matrix products: tokens a second x pico.flops.training_flops_per_token / `find_peak`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pico.model.linear import linear


@dataclass(frozen=True)
class Gpu:
    """A GPU's figures, as its maker publishes them."""

    words: tuple[str, ...]
    """Words of CUDA's name of the device, all of which it has."""
    bf16_flops: float
    """Dense bf16 products with float32 sums, FLOP/s; sparsity not counted."""
    memory_bytes: int
    source: str


_GB = 10**9
GPUS: dict[str, Gpu] = {
    "b200": Gpu(("B200",), 2250e12, 180 * _GB, "NVIDIA DGX B200 data sheet: 8 with 144 PFLOP/s of sparse FP4"),
    "h200": Gpu(("H200",), 989e12, 141 * _GB, "NVIDIA H200 data sheet, SXM"),
    "h100-pcie": Gpu(("H100", "PCIe"), 756e12, 80 * _GB, "NVIDIA H100 data sheet, PCIe"),
    "h100-nvl": Gpu(("H100", "NVL"), 835e12, 94 * _GB, "NVIDIA H100 data sheet, NVL"),
    "h100": Gpu(("H100",), 989e12, 80 * _GB, "NVIDIA H100 data sheet, SXM"),
    "gh200": Gpu(("GH200",), 989e12, 96 * _GB, "NVIDIA GH200 data sheet, HBM3"),
    "a100-40": Gpu(("A100", "40GB"), 312e12, 40 * _GB, "NVIDIA A100 data sheet"),
    "a100-80": Gpu(("A100",), 312e12, 80 * _GB, "NVIDIA A100 data sheet"),
    "l40s": Gpu(("L40S",), 362e12, 48 * _GB, "NVIDIA L40S data sheet"),
    "l4": Gpu(("L4",), 121e12, 24 * _GB, "NVIDIA L4 data sheet"),
    "rtx4090": Gpu(("RTX", "4090"), 165.2e12, 24 * _GB, "NVIDIA Ada GPU architecture white paper, appendix A"),
    "rtx3090": Gpu(("RTX", "3090"), 71e12, 24 * _GB, "NVIDIA GA102 GPU architecture white paper, appendix A"),
}
"""GPUs by the name that `pico plan --gpu` takes. Where names share words, the more particular one stands first."""


@dataclass(frozen=True)
class Peak:
    """The most that a device does, in FLOP/s."""

    flops: float
    published: bool
    """True where it is from `GPUS`; else it was measured, as the fastest of a few large matrix products."""


def gpu_of(device_name: str) -> Gpu | None:
    """Returns the published figures of a CUDA device by its name ("NVIDIA H100 80GB HBM3"), or None."""
    words = device_name.replace("-", " ").split()
    return next((gpu for gpu in GPUS.values() if all(word in words for word in gpu.words)), None)


def find_peak(device: torch.device, precision: str = "fp32") -> Peak:
    """Returns the peak of a device in "bf16" or "fp32": published for bf16 on a known GPU, else measured in 0.2 s.

    On a CPU it is the peak of the threads that torch is set to use. Draws no random numbers.
    """
    if device.type == "cuda" and precision == "bf16" and (gpu := gpu_of(torch.cuda.get_device_name(device))):
        return Peak(gpu.bf16_flops, published=True)
    size = 8192 if device.type == "cuda" else 1024
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.linspace(-1, 1, size * size, device=device).view(size, size).to(kind)
    products: list[Callable[[Tensor, Tensor], Tensor]] = [linear, torch.mm]  # on a CPU they are different libraries
    fastest = float("inf")
    for product in products * 5:
        _wait(device)
        start = time.perf_counter()
        product(matrix, matrix)
        _wait(device)
        fastest = min(fastest, time.perf_counter() - start)
    return Peak(2 * size**3 / fastest, published=False)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
