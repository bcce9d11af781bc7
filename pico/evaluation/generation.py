"""Greedy generation for lm-eval's generative tasks: batches of prompts, padded on the right."""

from collections.abc import Sequence

import torch

from pico.model import Decoder


@torch.inference_mode()
def generate(
    model: Decoder, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, eos_id: int, batch_size: int
) -> list[list[int]]:
    """Greedy continuations of `prompts` (each at least one id), in their order; EOS ends one and is not returned.

    Prompts are cut from the left, so that prompt and continuation fit into max_seq_len; where even max_new_tokens alone
    doesn't, half of it is prompt and generation ends when max_seq_len is reached.
    """
    limit = model.config.max_seq_len
    room = max(limit - max_new_tokens, limit // 2, 1)
    cut = [tuple(prompt[-room:]) for prompt in prompts]
    distinct = sorted(set(cut), key=lambda ids: (-len(ids), ids))
    found: dict[tuple[int, ...], list[int]] = {}
    for start in range(0, len(distinct), batch_size):
        batch = distinct[start : start + batch_size]
        found.update(zip(batch, _generate_batch(model, batch, max_new_tokens, eos_id), strict=True))
    return [found[ids] for ids in cut]


def _generate_batch(model: Decoder, batch: Sequence[tuple[int, ...]], budget: int, eos_id: int) -> list[list[int]]:
    """One token a row and pass, until every row has met EOS, its budget, or the end of the context."""
    device = model.embedding_proj.weight.device
    limit = model.config.max_seq_len
    lengths = torch.tensor([len(ids) for ids in batch])
    width = min(limit, int(lengths.max()) + budget)
    ids = torch.zeros(len(batch), width, dtype=torch.int64)
    for row, prompt in enumerate(batch):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    starts = lengths.clone()
    open_rows = torch.arange(len(batch))
    while len(open_rows):
        ends = lengths[open_rows]
        hidden = model.hidden(ids[open_rows, : int(ends.max())].to(device))
        last = hidden[torch.arange(len(open_rows), device=device), (ends - 1).to(device)]
        following = model.de_embedding_proj(last).float().argmax(-1).cpu()
        goes_on = following != eos_id
        open_rows, following = open_rows[goes_on], following[goes_on]
        ids[open_rows, lengths[open_rows]] = following
        lengths[open_rows] += 1
        open_rows = open_rows[(lengths[open_rows] < width) & (lengths[open_rows] - starts[open_rows] < budget)]
    return [ids[row, starts[row] : lengths[row]].tolist() for row in range(len(batch))]
