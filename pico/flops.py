"""How much arithmetic a decoder costs, and how much a machine can do: what MFU is made of.

MFU (model FLOPs utilisation; PaLM, arXiv 2204.02311, appendix B) is the share of a machine's peak that goes into the
model's own matrix products: tokens a second x `training_flops_per_token` / `peak_flops`. A product of an (m, k) and a
(k, n) matrix is 2 m k n FLOPs; the backward pass has two products for each one of the forward pass. Not counted:
norms, softmax, rotary turns, the optimiser, and anything that is worked out twice.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pico.model.decoder import DecoderConfig
from pico.model.linear import linear


@dataclass(frozen=True)
class ParameterCounts:
    """The parameters of a decoder by part; `total` equals what the model itself has."""

    embedding: int
    """Of tokens, and of positions where these are learned."""
    attention: int
    mlp: int
    norms: int
    unembedding: int
    """0 where it is the embedding's matrix."""

    @property
    def embeddings(self) -> int:
        """Input and output embedding together."""
        return self.embedding + self.unembedding

    @property
    def non_embedding(self) -> int:
        """All others: the size that scaling laws speak of (arXiv 2001.08361)."""
        return self.attention + self.mlp + self.norms

    @property
    def total(self) -> int:
        """All of them."""
        return self.embeddings + self.non_embedding


def count_parameters(config: DecoderConfig) -> ParameterCounts:
    """The parameters of `Decoder(config)`, without making it."""
    heads = config.attention_n_heads + config.attention_n_kv_heads
    vocabulary = config.vocab_size * config.d_model
    positions = config.max_seq_len * config.d_model if config.positions == "learned" else 0
    return ParameterCounts(
        embedding=vocabulary + positions,
        attention=config.n_layers * 2 * config.d_model * config.head_dim * heads,
        mlp=config.n_layers * 3 * config.d_model * config.activation_hidden_dim,
        norms=(2 * config.n_layers + 1) * config.d_model + config.qk_norm * config.n_layers * 2 * config.head_dim,
        unembedding=0 if config.tied_embeddings else vocabulary,
    )


def training_flops_per_token(config: DecoderConfig, seq_len: int) -> int:
    """FLOPs of the forward and backward pass per token of a row of `seq_len`: 6 N + 12 n_layers d_model seq_len.

    N is the number of parameters that are multiplied with: all matrices but input embeddings, which are looked up.
    The second term is attention's scores and mixing over all seq_len positions, as PaLM counts; that causal kernels
    skip half of them is not deducted, so that figures compare with published ones.
    """
    counts = count_parameters(config)
    multiplied = counts.attention + counts.mlp + config.vocab_size * config.d_model
    return 6 * multiplied + 12 * config.n_layers * config.d_model * seq_len


@dataclass(frozen=True)
class Gpu:
    """What a maker publishes of a GPU."""

    words: tuple[str, ...]
    """Those that CUDA's name of the device has, all of them."""
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
"""By the name that `pico plan --gpu` takes. Of names that share words, the more particular one stands first."""


@dataclass(frozen=True)
class Peak:
    """The most that a device does, FLOP/s, and how we know."""

    flops: float
    published: bool
    """From `GPUS`; otherwise measured here, as the fastest of a few large matrix products."""


def gpu_of(device_name: str) -> Gpu | None:
    """The published figures of a CUDA device by its name ("NVIDIA H100 80GB HBM3"); None for one not in `GPUS`."""
    words = device_name.replace("-", " ").split()
    return next((gpu for gpu in GPUS.values() if all(word in words for word in gpu.words)), None)


@functools.cache
def peak_flops(device: torch.device, precision: str = "fp32") -> Peak:
    """As `find_peak`, but once for each device and precision: for a progress bar."""
    return find_peak(device, precision)


def find_peak(device: torch.device, precision: str = "fp32") -> Peak:
    """The peak of a device in "bf16" or "fp32": published for bf16 on a known GPU, else measured in about 0.2 s.

    What is measured on a CPU is the peak of the threads that torch is set to use. Draws no random numbers.
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
