"""Near-duplicates: planted ones are found, others are not, and a cluster is on one side of the held-out split."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_documents import BPE, cleaning, made_up, packing, write_documents

from pico.data.preparation.near_duplicates import Clusters, bands_and_rows, buckets, similar_pairs, text_signatures
from pico.data.preparation.pipeline import prepare
from pico.data.tokens.hashing import band_keys


def edited(text, times, seed):
    """The text with some words replaced."""
    words, random = text.split(), np.random.default_rng(seed)
    for place in random.choice(len(words), times, replace=False):
        words[place] = "other"
    return " ".join(words)


def shingles(text):
    words = text.lower().split()
    return {tuple(words[k : k + 5]) for k in range(max(1, len(words) - 4))}


def test_the_estimate_is_the_jaccard_similarity():
    texts = [text for text in made_up(40, 1, words=300) if len(text.split()) > 60]
    for times in (0, 1, 3, 8):
        found = text_signatures([*texts, *(edited(text, times, 2) for text in texts)], 256, 5)
        estimated = (found[: len(texts)] == found[len(texts) :]).mean(axis=1)
        own = [(shingles(text), shingles(edited(text, times, 2))) for text in texts]
        exact = np.array([len(a & b) / len(a | b) for a, b in own])
        assert np.abs(estimated - exact).max() < 5 * 0.5 / 256**0.5
        assert np.abs(estimated - exact).mean() < 0.03


def test_a_signature_depends_on_its_text_alone():
    texts = ["", "one", "two words", *made_up(20, 1)]
    together = text_signatures(texts, 64, 5)
    assert np.array_equal(np.concatenate([text_signatures([text], 64, 5) for text in texts]), together)
    assert np.array_equal(text_signatures([text.upper() for text in texts[:3]], 64, 5), together[:3])
    assert len(np.unique(together, axis=0)) == len(texts)
    assert text_signatures([], 64, 5).shape == (0, 64)


@given(st.floats(0.5, 0.95))
def test_the_banding_finds_what_is_similar_enough(similarity):
    bands, rows = bands_and_rows(128, similarity)
    assert bands * rows <= 128
    assert 1 - (1 - similarity**rows) ** bands >= 0.95


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50)), min_size=1, max_size=60, unique=True), st.integers(1, 9)
)
def test_buckets_are_whole_whatever_the_batches(entries, size):
    entries = sorted(entries)
    keys = np.array([key for key, _ in entries], np.uint64)
    documents = np.array([document for _, document in entries], np.int64)
    batches = ((keys[k : k + size], documents[k : k + size]) for k in range(0, len(keys), size))
    found = [
        own.tolist()
        for bucket_documents, bucket in buckets(batches)
        for own in np.split(bucket_documents, np.flatnonzero(np.diff(bucket)) + 1)
        if len(own)
    ]
    expected = [[d for k, d in entries if k == key] for key in sorted({key for key, _ in entries})]
    assert found == [own for own in expected if len(own) > 1]


@given(st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=12), max_size=5))
def test_clusters_are_the_connected_components_named_by_their_first(rounds):
    clusters = Clusters(np.zeros(31, np.int64))
    naive = list(range(31))
    for pairs in rounds:
        clusters.join(np.array(pairs, np.int64).reshape(-1, 2))
        for a, b in pairs:
            low, high = sorted((naive[a], naive[b]))
            naive = [low if name == high else name for name in naive]
    assert clusters.first(np.arange(31)).tolist() == naive


def test_pairs_in_a_bucket_are_compared_with_the_first_of_their_kind(tmp_path):
    rows = np.zeros((6, 8), np.uint32)
    rows[[1, 3]] = 1  # 0, 2, 4, 5 are alike; 1 and 3 are; 9 is in another bucket
    rows.tofile(tmp_path / "text_signatures")
    documents, bucket = np.array([0, 1, 2, 3, 4, 5]), np.array([0, 0, 0, 0, 1, 1])
    pairs = similar_pairs(documents, bucket, tmp_path / "text_signatures", 8, 0.9)
    assert sorted(map(tuple, pairs.tolist())) == [(0, 2), (1, 3), (4, 5)]
    assert len(band_keys(rows, 2, 4)) == 2


@pytest.fixture(scope="module")
def texts():
    """Sixty documents, the first twenty with an edited copy each in another domain."""
    return [text for text in made_up(200, 5, words=120) if len(text.split()) > 70][:60]


def documents_of(tokens, part):
    return {
        document for path in (tokens / f"{part}-provenance").glob("*.parquet")
        for document in pq.read_table(path)["document"].to_pylist()
    }  # fmt: skip


def test_planted_near_duplicates_are_dropped_and_counted(texts, tmp_path):
    copies = [edited(text, 1, 7) for text in texts[:20]]
    folder = write_documents(tmp_path / "documents", {"a": ("mine", texts), "b": ("theirs", copies + made_up(5, 9))},
                             row_group=13)  # fmt: skip
    made = prepare(folder, tmp_path / "tokens", tokenizer=BPE, cleaning=cleaning(), packing=packing(), vocab_size=300,
                   runs=tmp_path / "runs")  # fmt: skip
    assert made["domains"]["theirs"]["dropped"]["near_duplicate"] == 20
    assert made["domains"]["mine"]["dropped"]["near_duplicate"] == 0
    assert made["domains"]["mine"]["documents"] == 60
    second = pq.read_table(folder / "b.parquet")["id"].to_pylist()[:20]
    assert not (documents_of(tmp_path / "tokens", "train") | documents_of(tmp_path / "tokens", "heldout")) & set(second)


def test_where_they_are_kept_a_cluster_is_on_one_side(texts, tmp_path):
    copies = [edited(text, 1, 7) for text in texts[:20]]
    folder = write_documents(tmp_path / "documents", {"a": ("mine", texts), "b": ("mine", copies)}, row_group=13)
    values = {"heldout_fraction": 0.4, "heldout_rows": 10_000}
    made = prepare(folder, tmp_path / "tokens", tokenizer=BPE, cleaning=cleaning(near_duplicates="keep"),
                   packing=packing(**values), vocab_size=300, runs=tmp_path / "runs")  # fmt: skip
    assert made["total"]["documents"] == 80
    first, second = (pq.read_table(folder / f"{name}.parquet")["id"].to_pylist() for name in "ab")
    train, heldout = (documents_of(tmp_path / "tokens", part) for part in ("train", "heldout"))
    assert not train & heldout
    sides = [(a in heldout, b in heldout) for a, b in zip(first, second, strict=False)]
    assert {(True, True), (False, False)} == set(sides)
    low = [[int(identity[:13], 16) < 0.4 * 2**52 for identity in own] for own in (first[:20], second)]
    assert low[0] != low[1]  # by its own hash, some copy would be on the other side
