"""Cached equals uncached; greedy is the largest; samples have the distribution that was asked for; EOS ends."""

import dataclasses

import pytest
import torch

from pico.errors import PicoError
from pico.model import Cache, Decoder, DecoderConfig, generate
from pico.model.generation import sample

SHAPES = [
    DecoderConfig(32, 3, 61, 24, 4, 2, 64),
    DecoderConfig(24, 1, 17, 24, 3, 3, 40, positions="learned", norm="layernorm"),
    DecoderConfig(32, 2, 61, 24, 4, 1, 48, qk_norm=True, tied_embeddings=True, activation="gelu"),
    DecoderConfig(32, 2, 61, 24, 2, 2, 48, positions="none", activation="relu"),
]


def made(config: DecoderConfig) -> Decoder:
    """Random weights, larger than a fresh model's, so that predictions differ."""
    model = Decoder(config, seed=2).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("norm.weight"):
                parameter.mul_(8)
    return model


@pytest.fixture(scope="module", params=SHAPES, ids=lambda config: f"{config.positions}-{config.norm}")
def model(request) -> Decoder:
    return made(request.param)


def random_ids(model: Decoder, *shape: int) -> torch.Tensor:
    return torch.randint(0, model.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
@pytest.mark.parametrize("parts", [[1] * 20, [7, 1, 1, 11], [20], [1, 19]])
def test_cached_equals_uncached_however_a_text_is_cut(model, parts):
    ids = random_ids(model, 3, 20)
    cache = Cache(3, 20)
    logits = torch.cat([model(part, cache) for part in ids.split(parts, dim=1)], dim=1)
    torch.testing.assert_close(logits, model(ids), rtol=1e-4, atol=1e-4)
    assert cache.lengths.tolist() == [20] * 3


@torch.inference_mode()
def test_rows_of_different_lengths_do_not_see_padding_or_each_other(model):
    ids, counts = random_ids(model, 3, 12), torch.tensor([12, 1, 5])
    cache = Cache(3, 24)
    first = model.hidden(ids, cache, counts)
    more = random_ids(model, 3, 12)
    second = model.hidden(more, cache, torch.tensor([3, 12, 0]))
    assert cache.lengths.tolist() == [15, 13, 5]
    turned = cache.select(torch.tensor([2, 0, 0]))
    third = model.hidden(ids[:, :2], turned)
    for row, (one, two) in enumerate([(12, 3), (1, 12), (5, 0)]):
        alone = model.hidden(torch.cat([ids[row, :one], more[row, :two]])[None])[0]
        own = torch.cat([first[row, :one], second[row, :two]])
        torch.testing.assert_close(own, alone, rtol=1e-4, atol=1e-4)
    whole = model.hidden(torch.cat([ids[2, :5], ids[0, :2]])[None])[0, 5:]
    torch.testing.assert_close(third[0], whole, rtol=1e-4, atol=1e-4)
    again = model.hidden(torch.cat([ids[0], more[0, :3], ids[2, :2]])[None])[0, 15:]
    torch.testing.assert_close(third[2], again, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused(model):
    cache = Cache(1, 24)
    model(random_ids(model, 1, 20), cache)
    with pytest.raises(PicoError, match="would hold 25 tokens"):
        model(random_ids(model, 1, 5), cache)
    with pytest.raises(PicoError, match="room for 3"):
        model(random_ids(model, 1, 4), Cache(1, 3))


@torch.inference_mode()
def test_greedy_is_the_largest_logit_of_the_whole_text(model):
    prompts = [[3], [5, 6, 7, 8, 9, 10], [11, 12]]
    texts = generate(model, prompts, max_new_tokens=9)
    for prompt, text in zip(prompts, texts, strict=True):
        logits = model(torch.tensor([prompt + text]))[0, len(prompt) - 1 : -1]
        chosen = logits.gather(-1, torch.tensor(text)[:, None])[:, 0]
        torch.testing.assert_close(chosen, logits.amax(-1), rtol=1e-4, atol=1e-4)
        assert generate(model, [prompt], max_new_tokens=9) == [text]
    assert generate(model, prompts, max_new_tokens=1) == [text[:1] for text in texts]
    assert generate(model, prompts, max_new_tokens=0) == [[], [], []]
    assert generate(model, [], max_new_tokens=5) == []


def test_eos_ends_a_row_and_the_context_ends_all():
    model = made(SHAPES[0])
    prompts = [[5, 6, 7], [8]]
    texts = generate(model, prompts, max_new_tokens=12)
    eos = texts[0][4]
    expected = [text[: text.index(eos)] if eos in text else text for text in texts]
    assert len(expected[0]) <= 4
    assert generate(model, prompts, max_new_tokens=12, eos_id=eos) == expected
    long = generate(model, [[3] * 20, [4]], max_new_tokens=100)
    assert [len(text) for text in long] == [4, 23]
    assert generate(model, [[3] * 24], max_new_tokens=100) == [[]]


def test_samples_depend_on_seed_and_row_alone():
    model = made(SHAPES[0])
    prompts = [[5, 6, 7], [8], [9, 1]]
    chosen = {"max_new_tokens": 10, "temperature": 2.0}
    texts = generate(model, prompts, **chosen, seed=3)
    assert generate(model, prompts, **chosen, seed=3) == texts
    assert generate(model, prompts, **chosen, seed=4) != texts
    assert generate(model, prompts[:2], **chosen, seed=3) == texts[:2]
    greedy = generate(model, prompts, max_new_tokens=10)
    assert generate(model, prompts, max_new_tokens=10, temperature=2.0, top_k=1) == greedy
    assert generate(model, prompts, max_new_tokens=10, temperature=2.0, top_p=1e-9) == greedy
    assert generate(model, prompts, max_new_tokens=10, temperature=1e-3) == greedy


LOGITS = torch.tensor([2.0, -1.0, 0.5, 2.0, 1.0, -3.0])


def shares(**settings: float) -> torch.Tensor:
    """Counts how often each of LOGITS is drawn, at 20,000 even steps between 0 and 1."""
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    drawn = sample(LOGITS.expand(len(uniform), -1), uniform, **{"temperature": 1.0, **settings})
    return torch.bincount(drawn, minlength=len(LOGITS)) / len(uniform)


def test_samples_have_the_softmax_distribution_at_any_temperature():
    for temperature in (0.5, 1.0, 3.0):
        expected = (LOGITS / temperature).softmax(-1)
        torch.testing.assert_close(shares(temperature=temperature), expected, atol=1e-4, rtol=0)


def test_top_k_and_top_p_keep_what_transformers_keeps():
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    for temperature, top_k, top_p in (
        (1.0, 3, 1.0),
        (0.7, None, 0.8),
        (1.3, 4, 0.6),
        (2.0, 50, 0.99),
        (1.0, None, 0.1),
    ):
        kept = TemperatureLogitsWarper(temperature)(None, LOGITS[None])
        kept = TopKLogitsWarper(min(top_k, 6))(None, kept) if top_k else kept
        kept = TopPLogitsWarper(top_p)(None, kept)
        found = shares(temperature=temperature, top_k=top_k, top_p=top_p)
        if top_p == 0.1:  # two are equally likely, and either alone is enough
            assert found.tolist() == [1, 0, 0, 0, 0, 0]
        else:
            torch.testing.assert_close(found, kept.softmax(-1)[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([[]], {}, "prompt 0 has 0 tokens"),
        ([[1], [1] * 25], {}, "prompt 1 has 25 tokens"),
        ([[1]], {"temperature": -1.0}, "temperature = -1.0"),
        ([[1]], {"temperature": 1.0, "top_k": 0}, "top_k = 0"),
        ([[1]], {"temperature": 1.0, "top_p": 0.0}, "top_p = 0.0"),
    ],
)
def test_what_makes_no_sense_is_refused(prompts, settings, message):
    with pytest.raises(PicoError, match=message):
        generate(made(dataclasses.replace(SHAPES[0])), prompts, max_new_tokens=2, **settings)
