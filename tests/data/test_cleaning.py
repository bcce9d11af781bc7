"""Cleaning: what is taken out and why, that code stays as it is, and that every drop is counted."""

import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_documents import BPE, cleaning, made_up, packing, plain, write_documents

from pico.data.gates.profiles import CONTROL
from pico.data.preparation.cleaning import LETTER, character_kinds, clean, judge, normalised, profile
from pico.data.preparation.pipeline import prepare
from pico.data.tokens.documents import Use

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(TEXT, st.sampled_from(["NFC", "NFKC"]))
def test_normal_forms_are_unicodes(text, form):
    assert normalised(text, form) == unicodedata.normalize(form, text)
    assert normalised(normalised(text, form), form) == normalised(text, form)
    assert normalised(text, "none") == text


def test_ftfy_repairs_what_was_decoded_wrongly_and_leaves_the_rest():
    assert normalised("lâ€™été", "ftfy") == "l’été"
    assert normalised("“quotes” ﬁ ＡＢ &amp; e\u0301", "ftfy") == "“quotes” ﬁ ＡＢ &amp; é"


@given(TEXT)
def test_text_of_verbatim_domains_stays_to_the_byte(text):
    settings = cleaning(unicode="NFKC", redact=["email", "phone", "key"])
    assert clean(text + " a@b.org e\u0301", settings, "code") == (text + " a@b.org e\u0301", Counter())


@pytest.mark.parametrize(
    ("text", "expected", "kind"),
    [
        ("write to jane.doe+list@mail.example.co.uk, please", "write to <email>, please", "email"),
        ("a@b is no address, nor is @jane, nor x@y.z1", None, "email"),
        ("call (650) 253-0000 or +44 20 7031 3000 now", "call <phone> or <phone> now", "phone"),
        ("in 1914-1918, 3.14159265 and 10.1000/182 were not called", None, "phone"),
        ("id AKIAIOSFODNN7EXAMPLE here", "id <key> here", "key"),
        ("ghp_" + "a1" * 18, "<key>", "key"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc=\n-----END RSA PRIVATE KEY-----\nend", "<key>\nend", "key"),
        ("skeleton-keys are no keys, AKIA neither", None, "key"),
    ],
)
def test_personal_data_and_keys_are_taken_out(text, expected, kind):
    found, counts = clean(text, cleaning(redact=[kind]), "prose")
    assert found == (expected or text)
    assert counts == ({kind: found.count(f"<{kind}>")} if expected else {})
    assert clean(text, cleaning(), "prose")[0] == text


def test_each_reason_is_given_to_the_text_that_it_fits():
    settings = cleaning(min_document_bytes=3, max_document_bytes=50, languages=["en"])
    texts = {
        "ab": Use.SHORT, " \n\t ": Use.SHORT, "x" * 51: Use.LONG, "abc\x00\x07": Use.CONTROL,
        "a --- === *** !!! ... ???": Use.LETTERS, "Der Hund schläft heute im großen Garten": Use.LANGUAGE,
        "The dog is sleeping in the garden today": Use.TRAIN,
    }  # fmt: skip
    assert judge(list(texts), settings, "prose").tolist() == list(texts.values())
    assert judge(["Der Hund schläft heute im großen Garten"], settings, "code").tolist() == [Use.TRAIN]
    assert judge([], settings, "prose").tolist() == []


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_characters_are_counted_as_unicode_and_the_gates_say(texts):
    import pyarrow as pa
    import pyarrow.compute as pc

    letters, control, visible, characters = profile(texts)
    assert control.tolist() == pc.count_substring_regex(pa.array(texts), CONTROL).to_pylist()
    assert characters.tolist() == [len(text) for text in texts]
    assert letters.tolist() == [sum(unicodedata.category(c)[0] in "LMN" for c in text) for text in texts]
    assert (letters + control <= visible).all()


def test_the_kind_of_every_character_is_unicodes():
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    expected = [unicodedata.category(character)[0] in "LMN" for character in every]
    assert np.array_equal(character_kinds() == LETTER, expected)


def test_every_drop_is_counted_by_reason_and_domain(tmp_path):
    good = made_up(30, 1)
    bad = ["!!! --- ???", "ab\x00\x01\x02", "e\u0301te\u0301 " + good[0], "\u00e9t\u00e9 " + good[0], "  \n"]
    folder = write_documents(tmp_path / "documents", {"a": ("prose", [*good, *bad]), "b": ("verse", made_up(20, 2))})
    settings = cleaning(near_duplicates="ignore", redact=["email"])
    made = prepare(folder, tmp_path / "tokens", tokenizer=BPE, cleaning=settings, packing=packing(), vocab_size=300,
                   runs=tmp_path / "runs")  # fmt: skip
    prose = made["domains"]["prose"]
    reasons = {"letters": 1, "control": 1, "cleaned_duplicate": 1, "short": 1}
    assert {key: number for key, number in prose["dropped"].items() if number} == reasons
    assert prose["documents"] == 31
    assert prose["changed_by_cleaning"] == 1
    assert not any(made["domains"]["verse"]["dropped"].values())
    assert made["total"]["documents_read"] == 55
    untouched = prepare(folder, tmp_path / "plain", tokenizer=BPE, cleaning=plain(), packing=packing(), vocab_size=300,
                        runs=tmp_path / "runs")  # fmt: skip
    assert untouched["domains"]["prose"]["documents"] == 34
    assert np.sum(list(untouched["total"]["dropped"].values())) == 1  # the blank one
