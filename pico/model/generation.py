"""Generates text: greedy or sampled, with a key/value cache, every row by itself however rows are batched."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pico.errors import PicoError
from pico.model.decoder import Cache, Decoder


@torch.inference_mode()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_id: int | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[list[int]]:
    """Returns continuations of `prompts` (token ids, at least one each), in their order.

    A continuation ends with EOS, which is not returned, after max_new_tokens, or where prompt and continuation fill
    max_seq_len. temperature 0 is greedy; else the next token is drawn as `sample` says, with random numbers that
    depend on `seed` and the row's number alone. Raises PicoError for an empty or too long prompt, and for settings
    that make no sense.
    """
    _check(model, prompts, temperature, top_k, top_p)
    limit = model.config.max_seq_len
    texts: list[list[int]] = [[] for _ in prompts]
    if not texts or max_new_tokens < 1:
        return texts
    room = torch.tensor([min(max_new_tokens, limit - len(prompt)) for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    generators = [torch.Generator().manual_seed(seed + 1_000_003 * row) for row in range(len(texts))]
    uniform = torch.stack([torch.rand(int(room.max()), dtype=torch.float64, generator=one) for one in generators])
    device = model.embedding_proj.weight.device
    ids = torch.zeros(len(texts), int(lengths.max()), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    cache = Cache(len(texts), int((lengths + room).max()))
    hidden = model.hidden(ids.to(device), cache, lengths)
    last = hidden[torch.arange(len(texts), device=device), (lengths - 1).to(device)]
    rows = torch.arange(len(texts))  # those that go on
    for step in range(int(room.max())):
        going = room[rows] > step
        logits = model.de_embedding_proj(last).float()
        if temperature == 0:
            following = logits.argmax(-1).cpu()
        else:
            following = sample(logits, uniform[rows, step], temperature=temperature, top_k=top_k, top_p=top_p)
        if eos_id is not None:
            going &= following != eos_id
        for row, token in zip(rows[going].tolist(), following[going].tolist(), strict=True):
            texts[row].append(token)
        going &= room[rows] > step + 1
        if not going.any():
            break
        if not going.all():
            rows, following, cache = rows[going], following[going], cache.select(going.nonzero()[:, 0])
        last = model.hidden(following[:, None].to(device), cache)[:, 0]
    return texts


def sample(
    logits: Tensor, uniform: Tensor, *, temperature: float, top_k: int | None = None, top_p: float = 1.0
) -> Tensor:
    """Draws a token from each row of logits, (n, vocab), by inverting its distribution at `uniform`, (n,) in [0, 1).

    In this order: logits are divided by `temperature`; all but the top_k largest go; and of those all but the fewest
    that together have at least probability top_p (nucleus sampling, arXiv 1904.09751). Returns (n,) int64 on the CPU,
    where it is worked out, in float64: the same on every device, ties to the lower id.
    """
    values, order = (logits.double().cpu() / temperature).sort(descending=True, stable=True)
    if top_k is not None:
        values, order = values[:, :top_k], order[:, :top_k]
    cumulative = values.softmax(-1).cumsum(-1)
    if top_p < 1:
        kept = 1 + (cumulative < top_p).sum(-1, keepdim=True).clamp(max=cumulative.shape[1] - 1)
        mass = cumulative.gather(-1, kept - 1)
    else:
        kept, mass = torch.full((len(values), 1), values.shape[1]), cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, uniform.double()[:, None] * mass, right=True)
    return order.gather(-1, drawn.minimum(kept - 1))[:, 0]


def _check(
    model: Decoder, prompts: Sequence[Sequence[int]], temperature: float, top_k: int | None, top_p: float
) -> None:
    limit = model.config.max_seq_len
    for row, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= limit:
            raise PicoError(
                f"prompt {row} has {len(prompt)} tokens; this model reads 1 to {limit} (max_seq_len)",
                mend="give at least one token, such as EOS, which stands before a document, and cut long prompts",
            )
        if outside := [one for one in prompt if not 0 <= one < model.config.vocab_size]:
            raise PicoError(
                f"prompt {row} holds {outside[0]}, which is no token: this model has {model.config.vocab_size}",
                mend="encode the prompt with the tokenizer that the model was trained with",
            )
    if not (temperature >= 0 and 0 < top_p <= 1 and (top_k is None or top_k >= 1)):
        raise PicoError(
            f"temperature = {temperature}, top_k = {top_k}, top_p = {top_p} is no way to sample",
            mend="temperature is 0 (greedy) or more, top_k 1 or more or none, top_p above 0 and at most 1",
        )
