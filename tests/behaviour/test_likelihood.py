"""Known values of likelihood, calibration, divergence and memorisation, from models that are known."""

import math

import numpy as np
import pytest
import torch

from pico.behaviour import as_scorer
from pico.behaviour.likelihood import (
    by_frequency,
    by_position,
    calibration_error,
    context_score,
    kl_divergence,
    memorised,
    position_edges,
)
from pico.behaviour.predictions import NGrams, Predictions, predict
from pico.model import Decoder
from tests.behaviour.conftest import VOCAB, TableScorer


def dirichlet(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(VOCAB), VOCAB)


def with_nll(nll: np.ndarray) -> Predictions:
    return Predictions(np.zeros(nll.shape, np.int64), nll, nll, nll > 0, None, None, VOCAB)


def test_the_mean_is_the_models_own_loss(decoder, rows):
    part = torch.from_numpy(rows)
    assert predict(as_scorer(decoder), rows).nll.mean() == pytest.approx(
        decoder.loss(part[:, :-1], part[:, 1:]).item(), rel=1e-5
    )


@pytest.mark.parametrize("seq", [1, 2, 3, 32, 33, 100])
def test_bins_share_out_every_token_once(seq):
    nll = np.random.default_rng(0).random((5, seq))
    bins = by_position(with_nll(nll))
    assert sum(one.measurement.n for one in bins) == nll.size
    assert sum(one.measurement.n * one.measurement.value for one in bins) == pytest.approx(nll.sum())
    assert (bins[0].low, bins[-1].high) == (0, seq)
    assert list(position_edges(seq)) == sorted(set(position_edges(seq)))


def test_position_bins_hold_their_positions():
    nll = np.tile(np.arange(8.0), (3, 1))
    assert [one.measurement.value for one in by_position(with_nll(nll))] == [0, 1, 2.5, 5.5]


def test_frequency_bins_follow_the_targets():
    rows = np.array([[0] * 90 + [1] * 9 + [2]])
    counts = NGrams(rows, VOCAB)
    found = predict(TableScorer(dirichlet(0)), rows, counts)
    bins = by_frequency(found, counts.frequency, edges=(0.0, 0.005, 0.05, 0.5, 1.0))
    assert [one.measurement.n for one in bins] == [0, 1, 9, 89]
    assert (bins[0].measurement.value, bins[0].measurement.status) == (None, "n_too_small")
    assert bins[1].measurement.value == pytest.approx(found.nll[0, -1])
    only = by_frequency(predict(TableScorer(dirichlet(0)), rows), np.eye(VOCAB)[0])
    assert only[-1].measurement.n == 89  # a share of exactly 1 is in the last bin


def test_in_context_score_is_the_loss_at_500_minus_that_at_50():
    nll = np.random.default_rng(0).random((4, 512))
    assert context_score(with_nll(nll)).value == pytest.approx((nll[:, 500] - nll[:, 50]).mean())
    falling = -np.tile(np.arange(256.0), (4, 1))  # at half the context: positions 250 and 25
    assert context_score(with_nll(falling)).value == -225
    assert context_score(with_nll(falling), half_width=5).value == pytest.approx(-225)
    assert context_score(with_nll(np.zeros((4, 1)))).status == "n_too_small"
    assert context_score(with_nll(falling), half_width=100).status == "n_too_small"


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_calibration_error(binning):
    generator = np.random.default_rng(0)
    confidence = generator.random(400_000)
    calibrated = generator.random(confidence.shape) < confidence
    assert calibration_error(confidence, calibrated, binning=binning).value == pytest.approx(0, abs=0.004)
    sure = np.full(1000, 0.9)
    assert calibration_error(sure, np.arange(1000) < 500, binning="width").value == pytest.approx(0.4)
    assert calibration_error(np.ones(50), np.zeros(50), binning=binning).value == 1
    assert calibration_error(np.ones(3), np.ones(3), binning=binning).status == "n_too_small"
    assert calibration_error(np.full(50, np.nan), np.ones(50), binning=binning).status == "nonfinite"


def test_equal_width_bins_are_those_of_the_definition():
    confidence, correct = np.array([0.05, 0.1, 0.11, 0.95, 1.0]), np.array([1, 0, 1, 1, 1])
    # (0, .1]: accuracy 1/2, confidence .075; (.1, .2]: 1 and .11; (.9, 1]: 1 and .975
    expected = (2 * abs(0.5 - 0.075) + (1 - 0.11) + 2 * (1 - 0.975)) / 5
    assert calibration_error(confidence, correct, bins=5).status == "ok"
    assert calibration_error(np.repeat(confidence, 2), np.repeat(correct, 2), bins=10).value == pytest.approx(expected)


def test_ngrams_are_distributions_and_a_model_that_is_one_has_divergence_0(rows):
    counts = NGrams(rows, VOCAB)
    bigrams = counts.bigram(np.arange(VOCAB))
    assert counts.unigram.sum() == pytest.approx(1)
    np.testing.assert_allclose(bigrams.sum(1), 1)
    seen = np.zeros((VOCAB, VOCAB))
    np.add.at(seen, (rows[:, :-1].ravel(), rows[:, 1:].ravel()), 1)
    plain = (seen + counts.unigram) / (seen.sum(1, keepdims=True) + 1)
    np.testing.assert_allclose(bigrams, plain)
    p = dirichlet(7)
    to_unigram, to_bigram = counts.divergences(np.arange(VOCAB), torch.from_numpy(np.log(p)))
    np.testing.assert_allclose(to_unigram, (p * np.log(p / counts.unigram)).sum(1))
    np.testing.assert_allclose(to_bigram, (p * np.log(p / bigrams)).sum(1))
    found = predict(TableScorer(np.tile(counts.unigram, (VOCAB, 1))), rows, counts)
    assert found.unigram_kl.mean() == pytest.approx(0, abs=1e-6)
    assert found.bigram_kl.mean() > 0.1
    assert predict(TableScorer(bigrams), rows, counts).bigram_kl.mean() == pytest.approx(0, abs=1e-6)


def test_pairs_do_not_cross_rows_and_unseen_tokens_fall_back_on_unigrams():
    counts = NGrams(np.array([[0, 1], [2, 3]]), 5)
    np.testing.assert_allclose(counts.bigram(np.array([4, 1]))[0], counts.unigram)
    np.testing.assert_allclose(counts.bigram(np.array([4, 1]))[1], counts.unigram)
    assert counts.bigram(np.array([0]))[0, 1] > 0.5


def test_divergence_is_the_known_sum(decoder, rows):
    p, q = dirichlet(1), dirichlet(2)
    expected = (p * np.log(p / q)).sum(1)[rows[:, :-1]].mean()
    assert kl_divergence(TableScorer(p), TableScorer(q), rows).value == pytest.approx(expected, rel=1e-5)
    assert kl_divergence(as_scorer(decoder), as_scorer(decoder), rows).value == 0
    assert kl_divergence(as_scorer(decoder), as_scorer(Decoder(decoder.config, seed=2)), rows).value > 0.01


def test_a_divergence_that_is_infinite_is_a_status(rows):
    certain = np.eye(VOCAB)
    with np.errstate(divide="ignore"):
        hard, soft = TableScorer(certain), TableScorer(dirichlet(1))
    assert kl_divergence(soft, hard, rows).status == "nonfinite"
    assert kl_divergence(hard, soft, rows).value > 0  # 0 ln 0 = 0
    assert kl_divergence(hard, soft, rows[:0]).status == "n_too_small"


def test_memorisation_is_what_greedy_decoding_gives(decoder):
    # Half of the rows are continued by the model itself, and of one of those the last token is altered.
    generator = np.random.default_rng(0)
    given = generator.integers(0, VOCAB, (8, 70))
    for row in range(4):
        for at in range(32, 64):
            given[row, at] = int(decoder(torch.from_numpy(given[row : row + 1, :at]))[0, -1].argmax())
    given[3, 63] = (given[3, 63] + 1) % VOCAB
    assert memorised(as_scorer(decoder), given).value == 3 / 8
    assert memorised(as_scorer(decoder), given[:, :63]).status == "n_too_small"


def test_a_model_trained_on_one_row_has_memorised_it(decoder):
    row = torch.from_numpy(np.random.default_rng(3).integers(0, VOCAB, (1, 64)))
    fresh = Decoder(decoder.config)
    assert memorised(as_scorer(fresh), row.numpy()).value == 0
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        fresh.loss(row[:, :-1], row[:, 1:]).backward()
        optimizer.step()
    assert memorised(as_scorer(fresh), row.numpy()).value == 1


def test_a_uniform_model_has_the_loss_of_its_vocabulary(rows):
    uniform = TableScorer(np.full((VOCAB, VOCAB), 1 / VOCAB))
    assert predict(uniform, rows).nll.mean() == pytest.approx(math.log(VOCAB))
