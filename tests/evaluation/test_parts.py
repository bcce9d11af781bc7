"""Parts of an evaluation: the checkpoints that are asked, held-out perplexity and bits per byte."""

from math import exp, log

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pico.evaluation import perplexity
from pico.evaluation.parts import choose_steps
from pico.evaluation.perplexity import heldout_scores, total_nats
from pico.model import Decoder

LAPTOP = [0, 1, 2, 4, 8, 16, 32, 64, 100, 200, 300, 400, 500, 600]


def rows(n: int, seed: int, seq_len: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 400, (n, seq_len + 1), dtype=np.int32)


def test_nats_are_the_summed_cross_entropy_however_the_rows_are_cut(
    model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = rows(7, 0)
    both = torch.from_numpy(ids).long()
    with torch.inference_mode():
        logits = model(both[:, :-1]).double()
    expected = float(F.cross_entropy(logits.flatten(0, 1), both[:, 1:].flatten(), reduction="sum"))
    assert total_nats(model, ids) == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr(perplexity, "TOKENS_AT_ONCE", 100)
    assert total_nats(model, ids) == pytest.approx(expected, rel=1e-6)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(model: Decoder) -> None:
    blank = Decoder(model.config)
    with torch.no_grad():
        blank.de_embedding_proj.weight.zero_()
    found = heldout_scores(blank, {"noise": (rows(3, 1), 288)})["noise"]
    assert found["perplexity"] == pytest.approx(400, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(log(400) / log(2) * 144 / 288, rel=1e-5)
    assert (found["tokens"], found["bytes"]) == (144, 288)


def test_all_is_weighted_by_tokens_not_a_mean_of_perplexities(model: Decoder) -> None:
    found = heldout_scores(model, {"b": (rows(1, 2), 100), "a": (rows(5, 3), 900)})
    assert list(found) == ["a", "b", "all"]
    nats = found["a"]["nats"] + found["b"]["nats"]
    assert found["all"]["perplexity"] == pytest.approx(exp(nats / 288))
    assert found["all"]["bits_per_byte"] == pytest.approx(nats / log(2) / 1000)
    assert found["all"]["perplexity"] != pytest.approx((found["a"]["perplexity"] + found["b"]["perplexity"]) / 2)


def test_the_choice_is_even_in_log_steps() -> None:
    assert choose_steps(LAPTOP, 5) == [0, 4, 32, 100, 600]


def test_one_is_the_last_and_two_are_the_ends() -> None:
    assert choose_steps(LAPTOP, 1) == [600]
    assert choose_steps(LAPTOP, 2) == [0, 600]


@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=60), st.integers(1, 80))
def test_as_many_as_asked_for_with_both_ends_whatever_the_order(steps: set[int], count: int) -> None:
    chosen = choose_steps(list(steps), count)
    assert len(chosen) == min(count, len(steps))
    assert set(chosen) <= steps
    assert chosen == sorted(chosen) == choose_steps(sorted(steps, reverse=True), count)
    assert chosen[-1] == max(steps)
    if count > 1:
        assert chosen[0] == min(steps)


def test_none_is_refused() -> None:
    with pytest.raises(ValueError, match="count = 0"):
        choose_steps(LAPTOP, 0)
