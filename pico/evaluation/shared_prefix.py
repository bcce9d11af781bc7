"""Runs a context once for several continuations of it: a tree of two levels in one row, kept apart by a mask.

    row        context ...  first continuation ...  second continuation ...
    position   0 1 2 ... n  n+1 n+2 ...             n+1 n+2 ...
    sees       itself       the context and itself  the context and itself

Each branch gets what it would get in a row of its own. The questions of SciQ are 4 x 160 tokens that way, or 170 this.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pico.model import Decoder
from pico.model.decoder import Attention, Block, rotate

Tree = tuple[Sequence[int], Sequence[Sequence[int]]]
"""A context and its continuations, as token ids."""


def hidden_of_branches(model: Decoder, trees: Sequence[Tree]) -> Tensor:
    """`Decoder.hidden` for each tree as a row: its context, then its continuations one after another.

    Returns (len(trees), width of the widest, d_model) on the model's device; what is right of a row's end is padding.
    No branch may be longer than max_seq_len, context included.
    """
    device = model.embedding_proj.weight.device
    width = max(len(context) + sum(map(len, branches)) for context, branches in trees)
    ids = torch.zeros(len(trees), width, dtype=torch.int64)
    positions = torch.zeros_like(ids)
    branch = torch.zeros_like(ids)  # 0: the context; padding belongs to it too, and is too far right to be seen
    for row, (context, branches) in enumerate(trees):
        end = len(context)
        ids[row, :end] = torch.tensor(context)
        positions[row, :end] = torch.arange(end)
        for number, continuation in enumerate(branches, start=1):
            start, end = end, end + len(continuation)
            ids[row, start:end] = torch.tensor(continuation, dtype=torch.int64)
            positions[row, start:end] = torch.arange(len(context), len(context) + len(continuation))
            branch[row, start:end] = number
    if all(len(branches) == 1 for _, branches in trees):
        return model.hidden(ids.to(device))  # a plain causal batch, for which torch has faster kernels
    ids, positions, branch = ids.to(device), positions.to(device), branch.to(device)
    earlier = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    mask = earlier & ((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None]))
    return _hidden(model, ids, model.rotary[positions], mask[:, None])


def _hidden(model: Decoder, ids: Tensor, table: Tensor, mask: Tensor) -> Tensor:
    """`Decoder.hidden` with positions and a mask of one's own. tests/evaluation holds the two to each other.

    table: (batch, seq, head_dim / 2), the rotary table at each id's position; mask: (batch, 1, seq, seq), what is seen.
    """
    x = model.embedding_proj(ids)
    for layer in cast(Iterable[Block], model.layers):
        x = x + _attend(layer.attention, layer.attention_norm(x), table, mask)
        x = x + layer.swiglu(layer.swiglu_norm(x))
    return model.output_norm(x)


def _attend(attention: Attention, x: Tensor, table: Tensor, mask: Tensor) -> Tensor:
    heads = (-1, attention.head_dim)
    q, k, v = (part(x).unflatten(-1, heads) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
    # `rotate` takes one table for all rows, so rows and positions become one axis
    q, k = (rotate(part.flatten(0, 1)[None], table.flatten(0, 1)).view_as(part) for part in (q, k))
    mixed = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, enable_gqa=True
    )
    return attention.o_proj(mixed.transpose(1, 2).flatten(-2))
