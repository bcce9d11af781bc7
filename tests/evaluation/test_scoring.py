"""Log-probabilities of given tokens, and greedy generation."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pico.evaluation.answer import generate
from pico.evaluation.scoring import Window, hidden_of_branches, rows_of, score, windows
from pico.model import Decoder

IDS = st.lists(st.integers(0, 399), max_size=120)


def direct(model: Decoder, ids: list[int], targets: int) -> tuple[float, bool]:
    """Returns what `score` should, by one unpadded forward pass and the textbook formula."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids[:-1]]))[0].double()
    found = F.log_softmax(logits, -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])][-targets:]
    return float(found.sum()), bool((logits.argmax(-1)[-targets:] == torch.tensor(ids[-targets:])).all())


@given(IDS.filter(bool), IDS, st.integers(1, 50))
def test_each_token_is_scored_once_with_as_much_context_as_fits(
    context: list[int], text: list[int], limit: int
) -> None:
    found = windows(context, text, limit)
    assert [token for window in found for token in window.continuation] == text
    assert all(window.context and len(window.context) + len(window.continuation) <= limit + 1 for window in found)
    if text:
        last = found[-1].context + found[-1].continuation
        assert list(last) == (context + text)[-(limit + 1) :]
    assert len(found) == math.ceil(len(text) / limit)


def test_answers_share_a_row_up_to_four_times_the_context() -> None:
    context = (1, 2)
    wanted = [Window(context, (3, 4, 5)), Window(context, (6,)), Window(context, (7, 7)), Window(context, (8, 8))]
    rows = rows_of([*wanted, Window((0,), (1, 2, 3)), Window((0,), (1, 2, 4)), *wanted], max_seq_len=48)
    assert [row.continuations for row in rows if row.context == context] == [((3, 4, 5), (6,), (7, 7)), ((8, 8),)]
    assert [row.continuations for row in rows if row.context == (0,)] == [((1, 2, 3),), ((1, 2, 4),)]
    assert len(rows_of(wanted, max_seq_len=3)) == 4


def test_branches_are_as_in_rows_of_their_own(model: Decoder) -> None:
    trees = [([5, 6, 7, 8], [[9, 10], [], [11, 12, 13]]), ([3], [[4, 5]])]
    with torch.inference_mode():
        together = hidden_of_branches(model, trees)
        for row, (context, branches) in enumerate(trees):
            start = len(context)
            for branch in branches:
                alone = model.hidden(torch.tensor([context + branch]))[0]
                own = torch.cat([together[row, : len(context)], together[row, start : start + len(branch)]])
                torch.testing.assert_close(own, alone, rtol=1e-4, atol=1e-4)
                start += len(branch)


def test_sharing_a_context_does_not_change_scores(model: Decoder) -> None:
    context = list(range(100, 130))
    requests = [(context, [n, n + 1, n + 2]) for n in range(8)] + [(context, [3])]
    for found, (_, text) in zip(score(model, requests, batch_size=4), requests, strict=True):
        assert found.log_probability == pytest.approx(direct(model, context + text, len(text))[0], rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(IDS.filter(bool), IDS.filter(lambda ids: 0 < len(ids) <= 48)), min_size=1, max_size=6))
def test_batched_scores_are_those_of_single_rows(model: Decoder, requests: list[tuple[list[int], list[int]]]) -> None:
    for found, (context, text) in zip(score(model, requests, batch_size=4), requests, strict=True):
        value, greedy = direct(model, (context + text)[-49:], len(text))
        assert found.log_probability == pytest.approx(value, rel=1e-5, abs=1e-4)
        assert found.greedy == greedy


def test_order_and_repetition_do_not_change_a_bit(model: Decoder) -> None:
    requests = [([1, 2, 3], [4, 5]), ([9] * 70, [8] * 60), ([7], [6]), ([1, 2, 3], [4, 6])]
    once = score(model, requests, batch_size=3)
    turned = score(model, requests[::-1] + requests, batch_size=3)
    assert turned == once[::-1] + once


def test_nothing_to_score_is_certain(model: Decoder) -> None:
    assert score(model, [([1], [])], batch_size=2) == [(0.0, True)]


def test_greedy_text_is_scored_as_greedy_and_batching_does_not_change_it(model: Decoder) -> None:
    prompts = [[5, 6, 7], [8], [5, 6, 7, 9, 11, 13]]
    texts = generate(model, prompts, max_new_tokens=6, eos_id=-1, batch_size=8)
    assert [len(text) for text in texts] == [6, 6, 6]
    assert [found.greedy for found in score(model, list(zip(prompts, texts, strict=True)), batch_size=8)] == [True] * 3
    assert [generate(model, [p], max_new_tokens=6, eos_id=-1, batch_size=1)[0] for p in prompts] == texts


def test_generation_stops_at_eos_and_at_the_end_of_the_context(model: Decoder) -> None:
    (text,) = generate(model, [[5, 6, 7]], max_new_tokens=6, eos_id=-1, batch_size=1)
    stop = text.index(text[3])
    assert generate(model, [[5, 6, 7]], max_new_tokens=6, eos_id=text[3], batch_size=1) == [text[:stop]]
    (long,) = generate(model, [[3] * 100], max_new_tokens=1000, eos_id=-1, batch_size=1)
    assert len(long) == model.config.max_seq_len // 2
