"""Encoding piece by piece gives the ids of encoding text by text, for any text and every tokenizer that is cut."""

import base64

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from pico.data.preparation.tokenizer import from_tiktoken, train_bpe
from pico.data.tokens.encoding import Encoder
from pico.data.tokens.tokenizer import QWEN2_PATTERN

SAMPLE = [
    "the thing's in it, isn't it? I'LL say: 12x4 = 48;\r\n\tdef in_it(self):\n        return 'é' # ü ",
    "日本 €5",
] * 3
TRAINED = train_bpe(SAMPLE, 330)


def other_pattern(pattern, **changes):
    """The trained one, with something set after training."""
    made = Tokenizer.from_str(TRAINED.to_str())
    made.pre_tokenizer = pattern or made.pre_tokenizer
    for name, value in changes.items():
        setattr(made, name, value)
    made.encode_special_tokens = True
    return made


def qwen2():
    merges = [b"in", b" t", b"he", b" the", b"))", b")\n", b"\n\n", b"  ", b"'s", b"12"]
    entries = [bytes([byte]) for byte in range(256)] + merges
    made = from_tiktoken(b"\n".join(base64.b64encode(entry) + b" %d" % rank for rank, entry in enumerate(entries)))
    made.encode_special_tokens = True
    return made


def with_added():
    """NFC, as OLMo's has; added tokens of spaces, and one that holds a place where text is otherwise cut."""
    made = other_pattern(None, normalizer=normalizers.NFC())
    made.add_tokens([AddedToken("    ", normalized=True), AddedToken("  ", normalized=False), AddedToken("the thing")])
    return made


CUT = {"gpt2": TRAINED, "qwen2": qwen2(), "added": with_added()}


def split_by(pattern, behaviour):
    """Words by a pattern, then bytes."""
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behaviour), bytes_of_words])


WHOLE = {
    "other pattern": other_pattern(split_by(r"\s+|\S+", "isolated")),
    "prefix space": other_pattern(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "no words": other_pattern(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "lower case": other_pattern(None, normalizer=normalizers.Lowercase()),
    "removed": other_pattern(split_by(QWEN2_PATTERN, "removed")),
}

# What patterns tell apart, dense enough that every pair of kinds meets: also white space beyond ASCII, marks, jamo.
LETTERS = "aZ09 '\"\n\r\t.,)(_=-ſs\x0b\x1c\x85\xa0\u2003\u3000é\u0301\u0308Å\u1100\u1161日€①٣𝒳\U0001f600|<>"
texts = st.one_of(
    st.text(),
    st.text(alphabet=LETTERS),
    st.lists(
        st.sampled_from(["the thing", "don't", " I'LL", "    ", "  ", " \n", ")\n\n", "12", "<|endoftext|>", *LETTERS])
    ).map("".join),
)


def check(encoder, texts):
    ids, lengths = encoder.encode(texts)
    expected = [[*encoding.ids, 9] for encoding in encoder.tokenizer.encode_batch(texts, add_special_tokens=False)]
    assert ids.dtype == np.int32
    assert lengths.tolist() == [len(own) for own in expected]
    assert ids.tolist() == [index for own in expected for index in own]


@pytest.mark.parametrize("name", sorted(CUT))
@settings(deadline=None)
@given(texts=st.lists(texts, max_size=4))
def test_pieces_give_the_ids_of_whole_texts(name, texts):
    encoder = Encoder(CUT[name], 9)
    assert encoder.cuts is not None
    check(encoder, texts)


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_what_is_not_known_to_be_safe_is_encoded_whole(name):
    encoder = Encoder(WHOLE[name], 9)
    assert encoder.cuts is None
    check(encoder, ["The Thing's", "", "a b  c\n", " é"])


def test_a_part_of_a_table_is_encoded_as_such():
    """Arrow arrays share buffers with what they were taken from."""
    texts = ["one two", "", "three", "four five six", "", "seven é"]
    whole = pa.chunked_array([pa.array(texts[:2]), pa.array(texts[2:])])
    ids, lengths = Encoder(TRAINED, 9).encode(texts[1:5])
    for part in (whole.slice(1, 4), whole.combine_chunks().slice(1, 4), whole.cast(pa.large_string()).slice(1, 4)):
        found, sizes = Encoder(TRAINED, 9).encode(part)
        assert (found.tolist(), sizes.tolist()) == (ids.tolist(), lengths.tolist())
    assert lengths[0] == 1


def test_long_texts_are_cut_across_what_is_scanned_at_a_time(monkeypatch):
    from pico.data.tokens import encoding

    for name in ("SCANNED", "AT_ONCE", "PIECES"):
        monkeypatch.setattr(encoding, name, 7)
    check(Encoder(TRAINED, 9), [*SAMPLE, "", "x" * 50, " ".join("abcdefghij" * 3)])


def test_english_has_few_distinct_pieces():
    """Its purpose: a cut before every word."""
    encoder = Encoder(TRAINED, 9)
    assert encoder.cuts is not None
    assert all(encoder.cuts[256 * ord(left) + ord(right)] for left, right in ("e ", "e.", ". ", "e\n", "1a"))
    assert not any(encoder.cuts[256 * ord(left) + ord(right)] for left, right in (" a", "\n ", "ab", "'t", "12"))
