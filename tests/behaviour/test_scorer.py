"""Adapters give what the models give; the attention that they show is the attention that the models use."""

import numpy as np
import pytest
import torch
import transformers

from pico.analysis.metrics.registry import BEHAVIOUR, default_metrics
from pico.behaviour import AttentionScorer, DecoderScorer, DifferentiableScorer, as_scorer
from pico.behaviour.measure import measure_behaviour
from pico.behaviour.objective import language_objective
from pico.behaviour.predictions import NGrams, predict
from pico.behaviour.scorer import causal_scores, check_rows, log_probability_chunks
from pico.behaviour.subject import BehaviourSettings
from pico.capture.hugging_face import HuggingFaceScorer
from pico.errors import PicoError
from tests.behaviour.conftest import VOCAB, TableScorer


def hugging_face(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.4,
        )  # fmt: skip
    elif kind == "gpt_neox":
        config = transformers.GPTNeoXConfig(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, initializer_range=0.4,
        )  # fmt: skip
    else:
        config = transformers.OPTConfig(
            vocab_size=VOCAB, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, word_embed_proj_dim=16, init_std=0.4,
            activation_function="gelu", pad_token_id=None,  # smooth; and no row of the embedding without gradient
        )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config)


def test_the_decoder_scorer_gives_the_decoders_log_probabilities(decoder, rows):
    input_ids = torch.from_numpy(rows[:, :-1])
    scorer = as_scorer(decoder)
    expected = decoder(input_ids).log_softmax(-1)
    assert torch.equal(scorer.log_probabilities(input_ids), expected)
    chunks = torch.cat(list(log_probability_chunks(scorer, input_ids)))
    torch.testing.assert_close(chunks, expected.flatten(0, 1), rtol=1e-5, atol=1e-5)


def test_the_decoders_attention_is_what_its_fused_kernel_computes(decoder, rows):
    table = decoder.rotary[:32]
    x = torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(0))
    attention = decoder.layers[1].attention
    scores = causal_scores(attention, x, table)
    values = attention.v_proj(x).unflatten(-1, (2, 4)).transpose(1, 2).repeat_interleave(2, dim=1)
    mixed = (scores.softmax(-1) @ values).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(attention.o_proj(mixed), attention(x, table), rtol=1e-5, atol=1e-5)
    layers = list(as_scorer(decoder).attention_logits(torch.from_numpy(rows[:, :-1])))
    assert [one.shape for one in layers] == [(6, 4, 32, 32)] * 2


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "opt"])
def test_hugging_face_models_show_the_attention_that_they_use(kind, rows):
    model = hugging_face(kind)
    scorer = HuggingFaceScorer(model)
    assert isinstance(scorer, AttentionScorer)
    assert isinstance(scorer, DifferentiableScorer)
    input_ids = torch.from_numpy(rows[:, :-1])
    with torch.no_grad():
        before = model(input_ids).logits
        assert torch.equal(scorer.log_probabilities(input_ids), before.log_softmax(-1))
        found = list(scorer.attention_logits(input_ids))
        assert torch.equal(model(input_ids).logits, before)  # and is afterwards what it was
        model.set_attn_implementation("eager")
        expected = model(input_ids, output_attentions=True).attentions
    assert len(found) == len(expected) == 2
    for logits, attention in zip(found, expected, strict=True):
        torch.testing.assert_close(logits.softmax(-1), attention, rtol=1e-5, atol=1e-6)
        assert logits.abs().nan_to_num(posinf=0).max() > 0.5  # a test of uniform attention would show nothing


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "opt"])
def test_hugging_face_models_have_all_behaviour_and_the_curvature_of_their_loss(kind, rows):
    model = hugging_face(kind)
    found = measure_behaviour(
        HuggingFaceScorer(model), rows, run=kind, step=0, tokens=0, training_rows=rows, ngrams=NGrams(rows, VOCAB),
        settings=BehaviourSettings(landscape_rows=1, trace_probes=2, krylov=4, hessian_tolerance=0.1),
    )  # fmt: skip
    assert {row["metric"] for row in found} == set(default_metrics(BEHAVIOUR)) - {"kl_to_checkpoint", "kl_to_seed"} | {
        "hessian_trace_standard_error"
    }
    objective = language_objective(HuggingFaceScorer(model), rows[:2])
    vector = torch.randn(objective.size, generator=torch.Generator().manual_seed(0))
    product, step = objective.hessian_vector(vector), 1e-3
    with objective.at(step * vector):
        ahead = objective.gradient()
    with objective.at(-step * vector):
        behind = objective.gradient()
    difference = (ahead - behind) / (2 * step)
    assert torch.nn.functional.cosine_similarity(difference, product, dim=0) > 0.99
    assert float(difference.norm() / product.norm()) == pytest.approx(1, abs=0.1)


def test_one_call_or_row_by_row_is_the_same(rows):
    table = np.random.default_rng(0).dirichlet(np.ones(VOCAB), VOCAB)
    found = predict(TableScorer(table), rows)
    np.testing.assert_allclose(found.nll, -np.log(table[rows[:, :-1], rows[:, 1:]]), rtol=1e-6)
    assert np.array_equal(found.correct, table[rows[:, :-1]].argmax(-1) == rows[:, 1:])


@pytest.mark.parametrize("bad", [np.zeros(5), np.zeros((2, 1)), np.full((1, 4), VOCAB), np.zeros((1, 99))])
def test_rows_that_a_model_cannot_read_are_named(decoder, bad):
    with pytest.raises(PicoError):
        check_rows(DecoderScorer(decoder), bad)


def test_what_is_no_model_is_refused():
    with pytest.raises(PicoError, match="not a model"):
        as_scorer(object())
