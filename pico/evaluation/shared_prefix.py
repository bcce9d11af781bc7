"""Runs a context once for several continuations of it, which then go on from its keys and values.

    context ...  -> cache        n positions, once
      first continuation ...     from position n, seeing the context and itself
      second continuation ...    from position n again: it overwrites what the first left in the cache

Each branch gets what it would get in a row of its own. The questions of SciQ are 4 x 160 tokens that way, or 170 this.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pico.model import Cache, Decoder

Tree = tuple[Sequence[int], Sequence[Sequence[int]]]
"""A context and its continuations, as token ids."""


def hidden_of_branches(model: Decoder, trees: Sequence[Tree]) -> Tensor:
    """`Decoder.hidden` for each tree as a row: its context, then its continuations one after another.

    Returns (len(trees), width of the widest, d_model) on the model's device; what is right of a row's end is nothing.
    No branch may be longer than max_seq_len, context included, and no context empty.
    """
    if all(len(branches) == 1 for _, branches in trees):  # nothing is shared
        return model.hidden(_padded([[*context, *branch] for context, (branch,) in trees], model)[0])
    ids, counts = _padded([context for context, _ in trees], model)
    ends = [len(context) for context, _ in trees]
    longest = max(len(context) + max(map(len, branches)) for context, branches in trees)
    cache = Cache(len(trees), longest)
    found = model.hidden(ids, cache, counts)
    width = max(len(context) + sum(map(len, branches)) for context, branches in trees)
    whole = found.new_zeros(len(trees), width, found.shape[-1])
    whole[:, : found.shape[1]] = found
    rows = list(range(len(trees)))  # those in the cache
    for number in range(max(len(branches) for _, branches in trees)):
        going = [row for row in rows if len(trees[row][1]) > number]
        if len(going) < len(rows):
            cache, rows = cache.select(torch.tensor([rows.index(row) for row in going])), going
        ids, counts = _padded([trees[row][1][number] for row in rows], model)
        if not ids.shape[1]:
            continue
        cache.lengths = torch.tensor([len(trees[row][0]) for row in rows])
        found = model.hidden(ids, cache, counts)
        for row, own, count in zip(rows, found, counts.tolist(), strict=True):
            whole[row, ends[row] : ends[row] + count] = own[:count]
            ends[row] += count
    return whole


def _padded(texts: Sequence[Sequence[int]], model: Decoder) -> tuple[Tensor, Tensor]:
    """Token ids as rows padded on the right, on the model's device, and how many of each row are real, on the CPU."""
    counts = torch.tensor([len(text) for text in texts])
    ids = torch.zeros(len(texts), int(counts.max()), dtype=torch.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text, dtype=torch.int64)
    return ids.to(model.embedding_proj.weight.device), counts
