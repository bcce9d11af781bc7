"""Held-out perplexity, weighted by tokens, and bits per byte, which compares models of different tokenizers."""

from collections.abc import Mapping
from math import exp, log

import numpy as np
import torch

from pico.model import Decoder

OVERALL = "all"
"""The entry over all domains: sums of nats, tokens and bytes, so that each token counts once whatever its domain."""

TOKENS_AT_ONCE = 1 << 14
"""Tokens in one forward pass: enough to keep a CPU's and a GPU's matrix products large."""


def summarise(nats: float, tokens: int, n_bytes: int) -> dict[str, float | int]:
    """Computes perplexity exp(nats / tokens) and bits per byte nats / (ln 2 x bytes), beside their terms.

    nats: summed negative log-likelihood of `tokens` targets, whose text has `n_bytes` UTF-8 bytes.
    """
    return {
        "nats": nats,
        "tokens": tokens,
        "bytes": n_bytes,
        "perplexity": exp(nats / tokens),
        "bits_per_byte": nats / (log(2) * n_bytes),
    }


@torch.inference_mode()
def total_nats(model: Decoder, rows: np.ndarray) -> float:
    """Sums the negative log-likelihood of rows[:, 1:], each token given all before it in its row, in float64.

    rows: (n, seq_len + 1) token ids. The model's device is used.
    """
    device = model.embedding_proj.weight.device
    per_pass = max(1, TOKENS_AT_ONCE // (rows.shape[1] - 1))
    total = 0.0
    for start in range(0, len(rows), per_pass):
        part = torch.from_numpy(rows[start : start + per_pass].astype(np.int64)).to(device)
        total += float(model.loss(part[:, :-1], part[:, 1:], reduction="none").cpu().double().sum())
    return total


def heldout_scores(model: Decoder, heldout: Mapping[str, tuple[np.ndarray, int]]) -> dict[str, dict[str, float | int]]:
    """Computes perplexity and bits per byte of every domain, and over all.

    heldout: domain -> (rows (n, seq_len + 1), UTF-8 bytes of all their targets).
    """
    parts = {
        domain: (total_nats(model, rows), rows.shape[0] * (rows.shape[1] - 1), n_bytes)
        for domain, (rows, n_bytes) in sorted(heldout.items())
    }
    nats, tokens, n_bytes = (sum(column) for column in zip(*parts.values(), strict=True))
    return {domain: summarise(*part) for domain, part in parts.items()} | {
        OVERALL: summarise(nats, int(tokens), int(n_bytes))
    }
