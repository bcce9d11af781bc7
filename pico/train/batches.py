"""The rows that each update and each capture sees: pure functions of step and settings, read ahead of time."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pico.data.tokens.loader import TokenRows, batch_indices, heldout_rows
from pico.errors import PicoError
from pico.train.spec import RunSpec

AHEAD = 2
"""Batches that are ready and wait, or are being made."""


class Batches:
    """The rows of one run. All give (n, seq_len + 1) int64 tensors on the CPU."""

    def __init__(self, spec: RunSpec, tokens: Path) -> None:
        self.spec = spec
        self.train = TokenRows(tokens / "train")
        self.heldout = {domain: rows for domain, (rows, _) in heldout_rows(tokens).items()}
        self.tinsy = {domain: rows for domain, (rows, _) in heldout_rows(tokens, "tinsy").items()}
        self.seq_len = self.train.row_len - 1
        if self.seq_len > spec.decoder.max_seq_len:
            raise PicoError(
                f"rows predict {self.seq_len} tokens; the model has max_seq_len = {spec.decoder.max_seq_len}",
                where=str(tokens),
                mend="set packing.seq_len and model.max_seq_len to fit",
            )

    def of_update(self, update: int, shard: slice = slice(None)) -> Tensor:
        """Returns the batch of update `update` (0-based), or a part of it."""
        return self._rows(self._indices(update)[shard])

    def dynamics(self, split: str, step: int) -> Tensor:
        """Returns the captured batch at checkpoint `step`: `learning_dynamics.batch_size` rows.

        "train": the first rows of the batch of the next update, and where that is smaller, of the updates after it;
        "val": the same rows of the small held-out set at every step, taken in turn from the domains.
        """
        size = self.spec.learning_dynamics.batch_size
        if split == "val":
            return torch.from_numpy(round_robin(self.tinsy, size).astype(np.int64))
        updates = -(-size // self.spec.training.batch_size)
        indices = np.concatenate([self._indices(step + offset) for offset in range(updates)])
        return self._rows(indices[:size])

    def all_heldout(self) -> Tensor:
        """Returns every held-out row, domain after domain."""
        return torch.from_numpy(np.concatenate([self.heldout[name] for name in sorted(self.heldout)]).astype(np.int64))

    def _indices(self, update: int) -> np.ndarray:
        return batch_indices(update, self.spec.training.batch_size, self.train.n_rows, self.spec.seed)

    def _rows(self, indices: np.ndarray) -> Tensor:
        return torch.from_numpy(self.train.rows(indices).astype(np.int64))


def round_robin(domains: dict[str, np.ndarray], size: int) -> np.ndarray:
    """Returns the first row of each domain by name, then the second of each, and so on: `size` rows, or all."""
    longest = max(len(rows) for rows in domains.values())
    ordered = [rows[i] for i in range(longest) for _, rows in sorted(domains.items()) if i < len(rows)]
    return np.stack(ordered[:size])


def micro_batches(batch: tuple[Tensor, ...], size: int, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Yields at most `size` examples at a time, on the device; the first axis of each tensor is the example's."""
    for parts in zip(*(one.split(size) for one in batch), strict=True):
        if device.type == "cuda":
            parts = tuple(part.pin_memory().to(device, non_blocking=True) for part in parts)
        yield parts


@contextmanager
def prefetched(
    make: Callable[[int], tuple[Tensor, ...]], start: int, stop: int, device: torch.device
) -> Iterator[Iterator[tuple[Tensor, ...]]]:
    """Yields make(start), ..., make(stop - 1) in turn. For CUDA they lie in pinned memory, so that copies do not wait.

    An exception of `make` is raised where its batch is asked for. On leaving, the thread ends.
    """

    def ready(number: int) -> tuple[Tensor, ...]:
        batch = make(number)
        return tuple(one.pin_memory() for one in batch) if device.type == "cuda" else batch

    def batches() -> Iterator[tuple[Tensor, ...]]:
        for number in range(start, stop):
            if number + AHEAD < stop:
                waiting.append(pool.submit(ready, number + AHEAD))
            yield waiting.popleft().result()

    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    waiting = deque(pool.submit(ready, number) for number in range(start, min(start + AHEAD, stop)))
    try:
        yield batches()
    finally:
        pool.shutdown(cancel_futures=True)
