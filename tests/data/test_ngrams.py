"""Runs of words: equal exactly where the words are, never across texts; and near-duplicates by MinHash."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pico.data.gates import ngrams
from pico.data.gates.duplicates import BANDS, PERMUTATIONS, Reference, minhash
from pico.data.gates.ngrams import Index, normalized_words, whole
from pico.data.gates.profiles import CLASSES, character_counts

WORDS = st.lists(st.sampled_from(["a", "b", "Cé", "don't", "“d”", "1,5", "\n"]), max_size=30).map(" ".join)


def plain_words(text):
    """The normalisation, written the slow way."""
    import unicodedata

    text = unicodedata.normalize("NFKC", text).lower()
    return "".join(c for c in text if unicodedata.category(c)[0] not in "PS").split()


@settings(max_examples=50, deadline=None)
@given(st.lists(WORDS, max_size=6), st.integers(1, 5))
def test_runs_are_equal_exactly_where_their_words_are(texts, n):
    words = normalized_words(pa.array(texts, pa.string()))
    assert words.counts.tolist() == [len(plain_words(text)) for text in texts]
    _, hashes, owners = next(words.runs([n]))
    runs = [
        (number, tuple(own[at : at + n]))
        for number, own in enumerate(map(plain_words, texts))
        for at in range(len(own) - n + 1)
    ]
    assert owners.tolist() == [number for number, _ in runs]
    by_hash = dict(zip(hashes.tolist(), (run for _, run in runs), strict=True))
    assert len(by_hash) == len({run for _, run in runs})
    assert all(by_hash[value] == run for value, (_, run) in zip(hashes.tolist(), runs, strict=True))


def test_case_punctuation_and_quotes_make_no_difference():
    one = normalized_words(pa.array(["He said: “Don’t go!”", None, "", "ﬁne １２"]))
    two = normalized_words(pa.array(["HE SAID  dont go", "", "...", "fine 12"]))
    assert one.hashes.tolist() == two.hashes.tolist()
    assert one.counts.tolist() == two.counts.tolist() == [4, 0, 0, 2]


def test_whole_texts_are_those_of_eight_words_and_up_but_shorter_than_a_run():
    texts = [" ".join("abcdefghijklmn"[:count]) for count in range(1, 15)]
    hashes, owners = whole(normalized_words(pa.array(texts)), 13)
    assert owners.tolist() == [7, 8, 9, 10, 11]
    assert len(set(hashes.tolist())) == 5


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=50), st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_an_index_finds_what_is_in_it_and_nothing_else(inside, others):
    index = Index.of(np.array(inside, np.uint64))
    asked = np.array([*others, *inside], np.uint64)
    at, places = index.find(asked)
    assert at.tolist() == [number for number, value in enumerate(asked.tolist()) if value in set(inside)]
    assert (index.hashes[places] == asked[at]).all()


def test_an_index_and_a_reference_are_the_same_after_saving(tmp_path):
    index = Index.of(np.arange(1000, dtype=np.uint64) << np.uint64(50))
    index.save(tmp_path)
    asked = np.arange(3000, dtype=np.uint64) << np.uint64(49)
    assert all(map(np.array_equal, index.find(asked), Index.load(tmp_path).find(asked)))
    found = minhash(normalized_words(pa.array([f"some words of text number {n}" for n in range(20)])))
    reference = Reference.of(found)
    reference.save(tmp_path)
    assert all(map(np.array_equal, reference.pairs(found, 0.3), Reference.load(tmp_path).pairs(found, 0.3)))


@pytest.mark.parametrize("changed", [0, 1, 4, 25])
def test_similarity_is_estimated_and_close_pairs_are_found(changed):
    random = np.random.default_rng(changed)
    texts = ["".join(f"w{n} " for n in random.permutation(10**6)[:200]) for _ in range(30)]
    others = [" ".join([*(f"v{n}" for n in range(changed)), *text.split()[changed:]]) for text in texts]
    shared = 196 - min(196, changed)  # shingles of five words; the changed words are at the beginning
    jaccard = shared / (2 * 196 - shared)
    one, two = (minhash(normalized_words(pa.array(own))) for own in (texts, others))
    assert one.shape == (30, PERMUTATIONS)
    estimate = (one == two).mean()
    assert estimate == pytest.approx(jaccard, abs=4 * np.sqrt(max(jaccard * (1 - jaccard), 1e-9) / (30 * PERMUTATIONS)))
    which, member, alike = Reference.of(one).pairs(two, 0.6)
    assert which.tolist() == member.tolist() == (list(range(30)) if changed < 25 else which.tolist())
    assert ((alike >= 0.6) & (alike <= 1)).all()


def test_texts_shorter_than_a_shingle_are_compared_with_nothing():
    found = minhash(normalized_words(pa.array(["hi there", "hi there", "", "one two three four five", "a b c d e f"])))
    which, member, _ = Reference.of(found).pairs(found, 0.5)
    assert list(zip(which.tolist(), member.tolist(), strict=True)) == [(3, 3), (4, 4)]
    assert BANDS * 5 == PERMUTATIONS


def test_words_and_runs_are_those_of_all_texts_however_they_are_split(monkeypatch):
    texts = [" ".join(f"w{k % 7}" for k in range(n)) for n in (0, 1, 30, 2, 0, 55, 9)] + [None, "don't  stop"]
    array = pa.array(texts, pa.string())
    whole = normalized_words(array)
    monkeypatch.setattr(ngrams, "SPLIT", 20)
    monkeypatch.setattr(ngrams, "PART", 10)
    parts = normalized_words(array)
    assert np.array_equal(whole.hashes, parts.hashes)
    assert np.array_equal(whole.counts, parts.counts)
    ((_, hashes, owners),) = whole.runs([5])
    found = [(first + own, run) for first, part in parts.parts() for _, runs, at in part.runs([5])
             for own, run in zip(at.tolist(), runs.tolist(), strict=True)]  # fmt: skip
    assert found == list(zip(owners.tolist(), hashes.tolist(), strict=True))


@settings(deadline=None)  # the first call asks for the classes of all characters
@given(st.lists(st.text() | st.none(), max_size=5))
def test_characters_are_counted_as_their_patterns_say(texts):
    column = pa.chunked_array([pa.array(texts, pa.string())])
    expected = [pc.sum(pc.count_substring_regex(column, pattern)).as_py() or 0 for pattern in CLASSES.values()]
    assert character_counts(column).tolist() == [*expected, pc.sum(pc.utf8_length(column)).as_py() or 0]


def test_the_class_of_every_character_is_known():
    characters = "".join(map(chr, [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]))
    column = pa.chunked_array([[characters]])
    expected = [pc.sum(pc.count_substring_regex(column, pattern)).as_py() for pattern in CLASSES.values()]
    assert character_counts(column).tolist() == [*expected, len(characters)]
