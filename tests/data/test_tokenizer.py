"""Tokenizers: exact round trips, EOS only where a document ends, byte counts, determinism, refusals."""

import base64
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from made_documents import made_up
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from pico.data.preparation.tokenizer import from_tiktoken, pretrained, save_tokenizer, train_bpe
from pico.data.tokens.encoding import Encoder
from pico.data.tokens.tokenizer import EOS, load_tokenizer, token_bytes, tokenizer_meta
from pico.errors import PicoError

TRAINED = train_bpe(made_up(80, 5), 400)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@given(TEXTS)
def test_any_text_comes_back_exactly(text):
    assert TRAINED.decode(TRAINED.encode(text).ids, skip_special_tokens=False) == text


@given(st.lists(TEXTS, max_size=5))
def test_each_document_is_followed_by_one_eos_and_its_bytes_are_counted(texts):
    ids, lengths = Encoder(TRAINED, 0).encode(texts)
    assert ids.dtype == np.int32
    assert lengths.sum() == len(ids)
    assert np.flatnonzero(ids == 0).tolist() == (np.cumsum(lengths) - 1).tolist()
    assert token_bytes(TRAINED)[ids].sum() == sum(len(text.encode()) for text in texts)


@settings(max_examples=30)
@given(TEXTS, TEXTS)
def test_eos_written_out_in_a_document_is_text(before, after):
    text = before + EOS + after
    ids = TRAINED.encode(text).ids
    assert TRAINED.token_to_id(EOS) not in ids
    assert TRAINED.decode(ids, skip_special_tokens=False) == text


def test_a_trained_tokenizer_holds_eos_then_every_byte():
    assert TRAINED.token_to_id(EOS) == 0
    assert TRAINED.get_vocab_size() == 400
    assert sorted(TRAINED.get_vocab()[letter] for letter in pre_tokenizers.ByteLevel.alphabet()) == list(range(1, 257))
    assert token_bytes(TRAINED)[0] == 0
    assert (token_bytes(TRAINED)[1:257] == 1).all()


def test_saved_and_loaded_it_encodes_alike_and_still_takes_eos_for_text(tmp_path):
    meta = save_tokenizer(TRAINED, tmp_path, kind="bpe", eos_token=EOS)
    assert meta == tokenizer_meta(tmp_path) == {"kind": "bpe", "vocab_size": 400, "eos_token": EOS, "eos_id": 0}
    loaded = load_tokenizer(tmp_path)
    text = f"naïve {EOS} 日本"
    assert loaded.encode(text).ids == TRAINED.encode(text).ids
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).token_to_id(EOS) == 0
    save_tokenizer(loaded, tmp_path / "again", kind="bpe", eos_token=EOS)
    assert (tmp_path / "again/tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_training_does_not_depend_on_order_threads_or_process():
    program = (
        "import hashlib, sys; from made_documents import made_up\n"
        "from pico.data.preparation.tokenizer import train_bpe\n"
        "texts = made_up(300, 7); texts = texts if sys.argv[1] == 'forward' else texts[::-1];"
        "print(hashlib.sha256(train_bpe(texts, 600).to_str().encode()).hexdigest())"
    )
    found = set()
    for order, threads in (("forward", "1"), ("forward", "2"), ("backward", "2")):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "true",
        }
        run = subprocess.run(
            [sys.executable, "-c", program, order], env=environment, capture_output=True, text=True, check=True
        )
        found.add(run.stdout)
    assert len(found) == 1


def test_too_few_entries_for_the_bytes_is_refused():
    with pytest.raises(PicoError, match=r"256 bytes[\s\S]*tokenizer.vocab_size"):
        train_bpe(["a"], 256)


def pretrained_file(folder, *, eos=EOS, decoder=None):
    """The trained tokenizer as a file whose EOS comes last, as in the published ones."""
    folder.mkdir(exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoder or decoders.ByteLevel()
    made.add_tokens([AddedToken("   ", normalized=False)])
    made.add_special_tokens([eos])
    (folder / "published.json").write_text(made.to_str())
    return folder


def test_a_pretrained_tokenizer_is_taken_as_it_is(tmp_path):
    found = pretrained(pretrained_file(tmp_path), 258, EOS)
    assert found.token_to_id(EOS) == 257
    text = f"a   é {EOS}"
    ids, _ = Encoder(found, 257).encode([text])
    assert ids[-1] == 257
    assert (ids == 257).sum() == 1
    assert 256 in ids  # the added token of three spaces
    assert token_bytes(found)[ids].sum() == len(text.encode())


@pytest.mark.parametrize(
    ("changes", "size", "eos", "message"),
    [
        ({}, 300, EOS, "258 entries.*not 300"),
        ({}, 258, "</s>", "'</s>' is not a special token"),
        ({}, 258, "   ", "not a special token"),
        ({"decoder": decoders.WordPiece()}, 258, EOS, "not byte-level"),
    ],
)
def test_a_pretrained_tokenizer_that_is_not_what_the_settings_say_is_refused(tmp_path, changes, size, eos, message):
    with pytest.raises(PicoError, match=message):
        pretrained(pretrained_file(tmp_path, **changes), size, eos)


def test_a_missing_or_broken_pretrained_file_is_named(tmp_path):
    with pytest.raises(PicoError, match="holds 0 files"):
        pretrained(tmp_path / "tokenizer", 258, EOS)
    (tmp_path / "broken.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(PicoError, match=r"broken\.json cannot be read"):
        pretrained(tmp_path, 258, EOS)
    (tmp_path / "broken.json").rename(tmp_path / "broken.tiktoken")
    with pytest.raises(PicoError, match=r"not a \.tiktoken file"):
        pretrained(tmp_path, 258, EOS)


def test_a_tiktoken_vocabulary_merges_by_rank():
    entries = [bytes([byte]) for byte in range(256)] + [b"in", b" t", b"he", b" the", b"ing", b"the", "é".encode()]
    data = b"\n".join(base64.b64encode(entry) + b" %d" % rank for rank, entry in enumerate(entries))
    found = from_tiktoken(data)
    assert found.get_vocab_size() == len(entries) + 3
    assert found.token_to_id(EOS) == len(entries)
    assert [entries[index] for index in found.encode("in the thing é").ids] == [
        b"in", b" the", b" t", b"h", b"ing", b" ", "é".encode()
    ]  # fmt: skip
    text = "Ĳ e\u0301 don't\r\n  99 \x00日本"
    ids = found.encode(text).ids
    assert found.decode(ids) == text
    assert token_bytes(found)[ids].sum() == len(text.encode())
