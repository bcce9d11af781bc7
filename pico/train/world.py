"""The processes that train one model together: who we are among them, and the little they say to each other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from pico.errors import PicoError


@dataclass(frozen=True)
class World:
    """This process among `size` equal ones. With size 1 nothing is ever sent."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def share(self, batch_size: int) -> slice:
        """Which rows of a global batch are ours: contiguous, equal shares."""
        each = batch_size // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def from_first(self, value: Any) -> Any:
        """What the first process holds; any picklable value of ours, among ourselves."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


def choose_device(kind: str, index: int = 0) -> torch.device:
    """The device that training.device names. Raises PicoError where it asks for CUDA and there is none."""
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise PicoError("training.device = 'cuda', but torch finds no CUDA device", where="params.yaml",
                        mend="use device: cpu or auto, or install a CUDA build of torch and a driver")  # fmt: skip
    return torch.device("cuda", index)


@contextmanager
def reproducible(threads: int, seed: int, *, compiled: bool = False) -> Iterator[None]:
    """Within it, equal programs give equal bits: fixed threads, seeded, deterministic kernels; restored afterwards.

    `compiled`: also in what torch.compile generates.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with a fixed workspace
    before = (torch.get_num_threads(), torch.get_deterministic_debug_mode(), torch.get_rng_state())
    extras: Any = torch.utils.deterministic
    fill = extras.fill_uninitialized_memory
    torch.set_num_threads(threads)  # the order of a parallel sum depends on their number
    if compiled:
        torch.use_deterministic_algorithms(True)
    else:  # the same switch, without importing the compiler to set its own, which takes 1.4 s
        torch.set_deterministic_debug_mode("error")
    extras.fill_uninitialized_memory = False  # a debugging aid that costs a pass over each tensor
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        if compiled:
            torch.use_deterministic_algorithms(False)
        torch.set_deterministic_debug_mode(before[1])
        extras.fill_uninitialized_memory = fill
        torch.set_rng_state(before[2])
