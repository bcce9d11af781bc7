"""The adapter against lm-eval's own `hf` model, on the same weights as a transformers Llama."""

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pico.evaluation.answer import Answerer
from pico.evaluation.benchmarks import DecoderLM
from pico.model import Decoder

PAIRS = [
    ("the question is", " what"),
    ("the question is ", "what"),  # the blank goes over to the continuation
    ("", "the answer"),
    ("\nQuestion: what?\nAnswer:", " the end of the question"),
    ("what the answer to the question was " * 12, " the end"),  # cut from the left
    ("Ω und ß, 東京", " was the answer"),
    ("the question is", " what"),
]
TEXTS = ["the answer", "what the answer to the question was " * 12, "x"]


def as_llama(model: Decoder) -> LlamaForCausalLM:
    """The same function in transformers: rotary pairs (2j, 2j + 1) become (j, j + head_dim / 2)."""
    config = model.config
    llama = LlamaForCausalLM(LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.d_model, intermediate_size=config.activation_hidden_dim,
        num_hidden_layers=config.n_layers, num_attention_heads=config.attention_n_heads,
        num_key_value_heads=config.attention_n_kv_heads, max_position_embeddings=config.max_seq_len,
        rms_norm_eps=config.norm_eps, rope_theta=config.position_emb_theta, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    ))  # fmt: skip

    def halves(weight: torch.Tensor) -> torch.Tensor:
        return weight.view(-1, config.head_dim // 2, 2, config.d_model).transpose(1, 2).reshape(weight.shape)

    ours, theirs = model.state_dict(), {}
    names = {
        "attention.q_proj": "self_attn.q_proj", "attention.k_proj": "self_attn.k_proj",
        "attention.v_proj": "self_attn.v_proj", "attention.o_proj": "self_attn.o_proj",
        "swiglu.w_0": "mlp.gate_proj", "swiglu.w_1": "mlp.up_proj", "swiglu.w_2": "mlp.down_proj",
        "attention_norm": "input_layernorm", "swiglu_norm": "post_attention_layernorm",
    }  # fmt: skip
    for layer in range(config.n_layers):
        for name, other in names.items():
            weight = ours[f"layers.{layer}.{name}.weight"]
            if name.endswith(("q_proj", "k_proj")):
                weight = halves(weight)
            theirs[f"model.layers.{layer}.{other}.weight"] = weight
    theirs["model.embed_tokens.weight"] = ours["embedding_proj.weight"]
    theirs["model.norm.weight"] = ours["output_norm.weight"]
    theirs["lm_head.weight"] = ours["de_embedding_proj.weight"]
    llama.load_state_dict(theirs)
    return llama.eval()


@pytest.fixture(scope="module")
def theirs(model: Decoder, tokenizer: Tokenizer) -> HFLM:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    return HFLM(
        pretrained=as_llama(model), tokenizer=fast, device="cpu", batch_size=2, max_length=model.config.max_seq_len
    )


@pytest.fixture(scope="module")
def ours(model: Decoder, tokenizer: Tokenizer) -> DecoderLM:
    return DecoderLM(Answerer(model, tokenizer, 0, batch_size=3))


def asked(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in arguments]


def test_loglikelihoods_are_those_of_lm_eval(ours: DecoderLM, theirs: HFLM) -> None:
    requests = asked("loglikelihood", PAIRS)
    for mine, expected in zip(ours.loglikelihood(requests), theirs.loglikelihood(requests), strict=True):
        assert mine[0] == pytest.approx(expected[0], abs=1e-4)
        assert mine[1] == expected[1]


def test_rolling_loglikelihoods_are_those_of_lm_eval(ours: DecoderLM, theirs: HFLM) -> None:
    requests = asked("loglikelihood_rolling", [(text,) for text in TEXTS])
    assert ours.loglikelihood_rolling(requests) == pytest.approx(theirs.loglikelihood_rolling(requests), rel=1e-5)


def test_greedy_text_is_that_of_lm_eval(ours: DecoderLM, theirs: HFLM) -> None:
    free = {"until": [], "max_gen_toks": 8, "do_sample": False}
    requests = asked("generate_until", [(text, free) for text in TEXTS])
    expected = theirs.generate_until(requests)
    assert ours.generate_until(requests) == expected
    stop = next(text for text in expected if len(text) > 3)[2:4]
    stopped = asked("generate_until", [(text, {**free, "until": [stop]}) for text in TEXTS])
    assert ours.generate_until(stopped) == [text.split(stop)[0] for text in expected]


def test_a_text_longer_than_the_context_can_be_a_continuation(ours: DecoderLM) -> None:
    """lm-eval's model stops with an assertion there."""
    text = "the answer to the question " * 12
    (found,) = ours.loglikelihood(asked("loglikelihood", [("", text)]))
    (rolling,) = ours.loglikelihood_rolling(asked("loglikelihood_rolling", [(text,)]))
    assert found[0] == pytest.approx(rolling)
