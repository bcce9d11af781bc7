"""The models that are trained side by side, and how."""

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch

LR, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0


@dataclass(frozen=True)
class Shape:
    """A Llama-like model and its batch."""

    name: str
    d_model: int
    n_layers: int
    vocab_size: int
    n_heads: int
    n_kv_heads: int
    hidden: int
    batch: int
    seq_len: int

    @property
    def tokens(self) -> int:
        """Rows of one step."""
        return self.batch * self.seq_len


SHAPES: dict[str, tuple[Shape, ...]] = {
    "laptop": (
        Shape("d192", 192, 6, 4096, 12, 4, 768, 16, 256),
        Shape("d96", 96, 12, 50304, 12, 4, 384, 4, 512),
    ),
    "paper": tuple(
        Shape(name, width, 12, 50304, 12, 4, 4 * width, 16, 2048)
        for name, width in (("tiny", 96), ("small", 384), ("medium", 768), ("large", 1536))
    ),
    "test": (Shape("d32", 32, 2, 128, 4, 2, 64, 2, 16),),
}


class Setting(NamedTuple):
    """The way in which a side runs its shape."""

    shape: Shape
    device: str
    threads: int
    steps: int

    @property
    def cuda(self) -> bool:
        """True for a run on CUDA: in bf16 and compiled, then."""
        return self.device == "cuda"


def now(setting: Setting) -> float:
    """Seconds, when the device has done what it was given."""
    if setting.cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
