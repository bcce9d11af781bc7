"""Answers the three kinds of request of lm-eval, as plain text, with a decoder: no lm-eval needed where models run.

Follows lm-eval's `hf` model: EOS stands before a text without context, blanks at the end of a context go over to the
continuation, and context and continuation are tokenized together.
"""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from pico.evaluation.scoring import score
from pico.model import Decoder
from pico.model import generate as continue_texts

KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")

DEFAULT_NEW_TOKENS = 256
"""The length of answers to requests that name none; lm-eval's own default."""


class Answerer:
    """A decoder with its tokenizer. Each method takes the arguments of lm-eval's requests and keeps their order."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, eos_id: int, *, batch_size: int) -> None:
        self.model, self.tokenizer, self.eos_id, self.batch_size = model, tokenizer, eos_id, batch_size

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Returns (log-probability in nats, whether greedy decoding gives it) of each (context, continuation)."""
        encoded = encode_pairs(self.tokenizer, self.eos_id, pairs)
        found = score(self.model, encoded, batch_size=self.batch_size)
        return [(one.log_probability, one.greedy) for one in found]

    def loglikelihood_rolling(self, texts: Sequence[tuple[str]]) -> list[float]:
        """Returns the log-probability of each whole text after EOS, in disjoint windows of the context length."""
        encoded = [([self.eos_id], ids) for ids in self._encode([text for (text,) in texts])]
        return [found.log_probability for found in score(self.model, encoded, batch_size=self.batch_size)]

    def generate_until(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """Continues each context greedily, up to the first stop sequence (`until`), EOS, or `max_gen_toks` tokens."""
        answers: list[str] = [""] * len(requests)
        budgets = [int(settings.get("max_gen_toks", DEFAULT_NEW_TOKENS)) for _, settings in requests]
        for budget in sorted(set(budgets)):
            group = [index for index, own in enumerate(budgets) if own == budget]
            prompts = [ids or [self.eos_id] for ids in self._encode([requests[index][0] for index in group])]
            found = generate(self.model, prompts, max_new_tokens=budget, eos_id=self.eos_id, batch_size=self.batch_size)
            for index, ids in zip(group, found, strict=True):
                answers[index] = _cut(self.tokenizer.decode(ids), requests[index][1].get("until") or [])
        return answers

    def answer(self, kind: str, arguments: Sequence[tuple]) -> list[Any]:
        """Returns the answers to requests of one kind, a method's name."""
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is not one of {KINDS}")
        return getattr(self, kind)(arguments)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [found.ids for found in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def encode_pairs(
    tokenizer: Tokenizer, eos_id: int, pairs: Sequence[tuple[str, str]]
) -> list[tuple[list[int], list[int]]]:
    """Encodes (context, continuation) pairs; see the module. Each distinct text is tokenized once."""
    moved = []
    for context, continuation in pairs:
        kept = context.rstrip()
        moved.append((kept, context[len(kept) :] + continuation) if kept else ("", context + continuation))
    texts = sorted({context for context, _ in moved} | {"".join(pair) for pair in moved})
    encoded = dict(zip(texts, tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True))
    result = []
    for context, continuation in moved:
        whole = encoded[context + continuation].ids
        if context:
            before = encoded[context].ids
            result.append((before, whole[len(before) :]))
        elif whole[:1] == [eos_id]:
            result.append((whole[:1], whole[1:]))
        else:
            result.append(([eos_id], whole))
    return result


def _cut(text: str, until: str | Sequence[str]) -> str:
    """Returns `text` before the first of the stop sequences."""
    for stop in [until] if isinstance(until, str) else until:
        if stop:
            text = text.split(stop)[0]
    return text


def generate(
    model: Decoder, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, eos_id: int, batch_size: int
) -> list[list[int]]:
    """Continues `prompts` (each at least one id) greedily, in their order; EOS ends one and is not returned.

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
