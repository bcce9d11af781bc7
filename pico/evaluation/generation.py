"""Greedy generation for lm-eval's generative tasks: batches of distinct prompts, cut to fit."""

from collections.abc import Sequence

from pico.model import Decoder
from pico.model import generate as continue_texts


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
        texts = continue_texts(model, batch, max_new_tokens=max_new_tokens, eos_id=eos_id)
        found.update(zip(batch, texts, strict=True))
    return [found[ids] for ids in cut]
