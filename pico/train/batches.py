"""Which rows each update and each capture sees: pure functions of step and settings, whatever the world size."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pico.data.tokens.loader import TokenRows, batch_indices, heldout_rows
from pico.errors import PicoError
from pico.train.spec import RunSpec


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

    def of_update(self, update: int, share: slice = slice(None)) -> Tensor:
        """The batch of update `update` (0-based), or a share of it."""
        return self._rows(self._indices(update)[share])

    def dynamics(self, split: str, step: int) -> Tensor:
        """The captured batch at checkpoint `step`: `learning_dynamics.batch_size` rows.

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
        """Every held-out row, domain after domain."""
        return torch.from_numpy(np.concatenate([self.heldout[name] for name in sorted(self.heldout)]).astype(np.int64))

    def _indices(self, update: int) -> np.ndarray:
        return batch_indices(update, self.spec.training.batch_size, self.train.n_rows, self.spec.seed)

    def _rows(self, indices: np.ndarray) -> Tensor:
        return torch.from_numpy(self.train.rows(indices).astype(np.int64))


def round_robin(domains: dict[str, np.ndarray], size: int) -> np.ndarray:
    """The first row of each domain by name, then the second of each, and so on: `size` rows, or all there are."""
    longest = max(len(rows) for rows in domains.values())
    ordered = [rows[i] for i in range(longest) for _, rows in sorted(domains.items()) if i < len(rows)]
    return np.stack(ordered[:size])


def micro_batches(rows: Tensor, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """(input_ids, targets) of at most `size` rows at a time, on the device; each (n, seq_len) int64."""
    for part in rows.split(size):
        if device.type == "cuda":
            part = part.pin_memory().to(device, non_blocking=True)
        yield part[:, :-1], part[:, 1:]
