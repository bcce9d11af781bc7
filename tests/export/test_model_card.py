"""The model card states what was measured, stays valid Markdown and YAML, and survives missing values."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pico.config import DecoderConfig, Params, load_params
from pico.export.model_card import model_card

RESULTS = {
    "step": 600,
    "tokens": 1_228_800,
    "heldout": {
        "code": {"nats": 100.0, "tokens": 2560, "bytes": 9000, "perplexity": 31.44, "bits_per_byte": 1.234},
        "all": {"nats": 100.0, "tokens": 5120, "bytes": 9000, "perplexity": 40.0, "bits_per_byte": 2.345},
    },
    "benchmarks": {
        "sciq": {"metric": "acc_norm", "value": 0.415, "stderr": 0.049, "chance": 0.25, "n": 100, "all": {}},
        "lambada": {"metric": "acc", "value": None, "stderr": None, "chance": 0.0, "n": 0, "all": {}},
    },
}


@pytest.fixture
def params() -> Params:
    return load_params(Path(__file__).parents[2] / "params.yaml")


def make_card(params: Params, **options: Any) -> str:
    config = DecoderConfig(64, 4, 4096, 256, 4, 2, 256, **options)
    return model_card(
        "small",
        params,
        config,
        parameters=777_888,
        embedding_parameters=524_288,
        results=RESULTS,
        samples=[{"prompt": "The people", "continuation": " of\n```\n| the # end"}],
    )


@pytest.fixture
def card(params: Params) -> str:
    return make_card(params)


def test_front_matter_is_yaml(card: str, params: Params) -> None:
    head = YAML(typ="safe").load(card.split("---")[1])
    assert head["license"] == params.export.licence
    assert head["pipeline_tag"] == "text-generation"


def test_measured_values_are_stated(card: str) -> None:
    assert "777,888" in card
    assert "253,600 without embeddings" in card
    assert re.search(r"\| code \| 1\.234 \| 31\.4 \| 2,560 \|", card)
    assert re.search(r"\| sciq \| acc_norm \| 0\.415 \| 0\.049 \| 0\.250 \| 100 \|", card)
    assert re.search(r"\| lambada \| acc \| — \| — \| 0\.000 \| 0 \|", card)


def test_the_architecture_is_the_one_that_was_trained(card: str, params: Params) -> None:
    assert (
        "| Llama: RMSNorm before attention and MLP, rotary embeddings, grouped-query attention, SwiGLU, no biases, un"
        in card
    )
    other = make_card(params, qk_norm=True, tied_embeddings=True)
    assert "the standard Qwen3 architecture" in other
    assert "SwiGLU, no biases, tied embeddings, normalised queries and keys |" in other


def test_every_source_and_licence_is_listed(card: str, params: Params) -> None:
    for source in params.corpus.sources:
        assert source.licence in card


def test_tables_hold_and_samples_cannot_break_out(card: str) -> None:
    for block in re.findall(r"(?:^\|.*\n)+", card, re.M):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert "\n    | the # end" in card  # indented, so that generated text is never read as Markdown
    assert card.count("```") == 3  # the opening and closing of the loading example, and the indented one of the sample
