"""Log-probabilities of given tokens under a decoder: windows of the context length, in padded batches.

The answers to one question share its context, which is run once for all of them; they go on from its keys and values:

    context ...  -> cache        n positions, once
      first continuation ...     from position n, seeing the context and itself
      second continuation ...    from position n again: it overwrites what the first left in the cache

Each gets what it would get in a row of its own. The questions of SciQ are 4 x 160 tokens that way, or 170 this.

A causal model ignores what stands to the right, so padding changes nothing but the rounding. Batches are formed from
the distinct windows by length: the same set of requests gives the same bits, in whatever order they were asked.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pico.model import Cache, Decoder

LOGITS_AT_ONCE = 1 << 22
"""Elements of the largest block of logits: 16 MB, whatever the vocabulary."""
Tree = tuple[Sequence[int], Sequence[Sequence[int]]]
"""A context and its continuations, as token ids."""


class Window(NamedTuple):
    """Tokens that are scored at once: each id of `continuation`, given all before it. At most max_seq_len + 1 ids."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Row(NamedTuple):
    """A row of a batch: windows of one context."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    @property
    def width(self) -> int:
        """Ids that the model reads: nothing is predicted from the last id of a continuation."""
        return len(self.context) + sum(len(continuation) - 1 for continuation in self.continuations)


class Score(NamedTuple):
    """A continuation's log-probability in nats, and whether greedy decoding would have produced it."""

    log_probability: float
    greedy: bool


def windows(context: Sequence[int], continuation: Sequence[int], max_seq_len: int) -> list[Window]:
    """Returns the windows that score each token of `continuation` once, with at most max_seq_len ids before it.

    Usually one, its context cut from the left. A continuation longer than max_seq_len is cut into disjoint windows,
    each given at least one earlier token, the last one a full window: the rolling likelihood of lm-eval. `context`
    holds at least one token.
    """
    ids = (*context, *continuation)
    parts = []
    for start in range(len(context), len(ids), max_seq_len):
        end = min(start + max_seq_len, len(ids))
        parts.append(Window(ids[max(0, end - max_seq_len - 1) : start], ids[start:end]))
    return parts


def rows_of(wanted: Iterable[Window], max_seq_len: int) -> list[Row]:
    """Returns the distinct windows as rows, longest first within those of several windows and within those of one.

    Windows of one context share a row while it is no longer than 4 times the context, and max_seq_len: they are run one
    after another, and beyond, more would be lost by that than the context saves.
    """
    rows = []
    for context, group in groupby(sorted(set(wanted)), key=lambda window: window.context):
        row: list[tuple[int, ...]] = []
        length = len(context)
        for _, continuation in group:
            if row and length + len(continuation) > min(4 * len(context), max_seq_len):
                rows.append(Row(context, tuple(row)))
                row, length = [], len(context)
            row.append(continuation)
            length += len(continuation)
        rows.append(Row(context, tuple(row)))
    return sorted(rows, key=lambda row: (len(row.continuations) == 1, -row.width, row))


@torch.inference_mode()
def score(model: Decoder, requests: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_size: int) -> list[Score]:
    """Scores (context, continuation) pairs of token ids, in their order. Sums are in float64.

    batch_size: rows in one forward pass. The model's device is used. An empty continuation scores (0, True).
    """
    limit = model.config.max_seq_len
    wanted = [windows(context, continuation, limit) for context, continuation in requests]
    rows = rows_of((window for parts in wanted for window in parts), limit)
    scores: dict[Window, Score] = {}
    for start in range(0, len(rows), batch_size):
        scores.update(_score_batch(model, rows[start : start + batch_size]))
    return [
        Score(sum(scores[part].log_probability for part in parts), all(scores[part].greedy for part in parts))
        for parts in wanted
    ]


def _score_batch(model: Decoder, rows: Sequence[Row]) -> dict[Window, Score]:
    """Runs one forward pass; logits are computed only at positions whose next token is scored."""
    hidden = hidden_of_branches(model, [(row.context, [c[:-1] for c in row.continuations]) for row in rows])
    batch: list[Window] = []
    where: list[tuple[int, int]] = []
    for number, row in enumerate(rows):
        following = len(row.context)
        for continuation in row.continuations:
            batch.append(Window(row.context, continuation))
            end = following + len(continuation) - 1
            where += [(number, len(row.context) - 1), *((number, place) for place in range(following, end))]
            following = end
    counts = [len(window.continuation) for window in batch]
    numbers, places = torch.tensor(where, device=hidden.device).unbind(1)
    targets = torch.tensor([token for window in batch for token in window.continuation], device=hidden.device)
    log_probabilities, greedy = _score_positions(model, hidden[numbers, places], targets)
    scores = zip(log_probabilities.split(counts), greedy.split(counts), strict=True)
    return {
        window: Score(float(values.sum()), bool(hits.all()))
        for window, (values, hits) in zip(batch, scores, strict=True)
    }


def _score_positions(model: Decoder, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns log-probability (float64, CPU) and greediness of each target. hidden: (n, d_model); targets: (n,)."""
    rows = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    log_probabilities, greedy = [], []
    for part, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
        logits = model.de_embedding_proj(part).float()
        found = logits.gather(-1, wanted[:, None])[:, 0]
        log_probabilities.append((found - logits.logsumexp(-1)).cpu().double())
        greedy.append((logits.argmax(-1) == wanted).cpu())
    return torch.cat(log_probabilities), torch.cat(greedy)


def hidden_of_branches(model: Decoder, trees: Sequence[Tree]) -> Tensor:
    """Computes `Decoder.hidden` for each tree as a row: its context, then its continuations one after another.

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
    """Pads token ids to rows, on the model's device; returns these, and how many of each are real, on the CPU."""
    counts = torch.tensor([len(text) for text in texts])
    ids = pad_sequence([torch.tensor(text, dtype=torch.int64) for text in texts], batch_first=True)
    return ids.to(model.embedding_proj.weight.device), counts
