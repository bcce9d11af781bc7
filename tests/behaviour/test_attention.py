"""Heads whose behaviour is known by construction."""

import math

import numpy as np
import pytest
import torch

from pico.behaviour import as_scorer
from pico.behaviour.attention import head_entropies, head_induction, induction_gain
from pico.behaviour.predictions import repeated_tokens, summarise_attention
from tests.behaviour.conftest import VOCAB, InductionScorer, TableScorer


def test_random_rows_are_repeated_distinct_and_the_same_every_time():
    rows = repeated_tokens(100, 40, 7, seed=3, exclude=(0, 99))
    assert rows.shape == (7, 80)
    assert np.array_equal(rows[:, :40], rows[:, 40:])
    assert all(len(set(row)) == 40 for row in rows)
    assert not np.isin(rows, (0, 99)).any()
    assert np.array_equal(rows, repeated_tokens(100, 40, 7, seed=3, exclude=(0, 99)))
    assert not np.array_equal(rows, repeated_tokens(100, 40, 7, seed=4, exclude=(0, 99)))
    assert repeated_tokens(30, 40, 7, seed=3).shape == (0, 80)


def test_a_perfect_induction_head_gives_1():
    scorer, length = InductionScorer(300), 50
    repeated = repeated_tokens(300, length, 5, seed=0)
    ((perfect, uniform),) = head_induction(scorer, repeated)  # one layer
    assert perfect == pytest.approx(1)
    assert uniform == pytest.approx(np.mean(1 / np.arange(length + 1, 2 * length + 1)), rel=1e-5)


def test_the_loss_knows_induction_too():
    repeated = repeated_tokens(300, 50, 5, seed=0)
    assert induction_gain(InductionScorer(300), repeated).value == pytest.approx(math.log(300), rel=1e-4)
    bigrams = TableScorer(np.random.default_rng(0).dirichlet(np.ones(300), 300))
    assert induction_gain(bigrams, repeated).value == pytest.approx(0, abs=1e-9)  # it remembers nothing
    assert induction_gain(bigrams, repeated[:0]).status == "n_too_small"


def test_uniform_attention_has_entropy_ln_t(decoder):
    with torch.no_grad():
        for layer in decoder.layers:
            layer.attention.q_proj.weight.zero_()
    tokens = np.random.default_rng(0).integers(0, VOCAB, (5, 30))
    summary = summarise_attention(as_scorer(decoder), tokens)
    assert summary.entropy.shape == (2, 4, 30)
    np.testing.assert_allclose(summary.entropy, np.broadcast_to(np.log(np.arange(1, 31)), (2, 4, 30)), atol=1e-5)
    np.testing.assert_allclose(head_entropies(summary), np.full((2, 4), np.log(np.arange(2, 31)).mean()), rtol=1e-5)
    assert not summary.max_logit.any()


def test_attention_sharpens_and_logits_grow_with_the_queries(decoder, rows):
    before = summarise_attention(as_scorer(decoder), rows)
    with torch.no_grad():
        for layer in decoder.layers:
            layer.attention.q_proj.weight.mul_(2)
    after = summarise_attention(as_scorer(decoder), rows)
    np.testing.assert_allclose(after.max_logit[0], 2 * before.max_logit[0], rtol=1e-5)
    assert (after.entropy[0].mean(-1) < before.entropy[0].mean(-1)).all()


def test_a_summary_does_not_depend_on_how_rows_are_split(decoder, rows, monkeypatch):
    whole = summarise_attention(as_scorer(decoder), rows)
    monkeypatch.setattr("pico.behaviour.predictions.SCORES_AT_ONCE", 1)
    one_by_one = summarise_attention(as_scorer(decoder), rows)
    np.testing.assert_allclose(whole.entropy, one_by_one.entropy, atol=1e-5)
    np.testing.assert_allclose(whole.max_logit, one_by_one.max_logit, rtol=1e-5)
