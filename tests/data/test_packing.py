"""Packing, held-out choice, training order, unigram baseline: nothing lost, the seed alone decides, known values."""

import hashlib
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pico.data.preparation.blocks import halves
from pico.data.preparation.packing import copies, mixture, order_keys, segments, spread_evenly
from pico.data.preparation.provenance import bits_per_byte, unigram_bits
from pico.data.preparation.shards import shard_name, write_rows
from pico.data.tokens.hashing import low_hashes
from pico.data.tokens.tokenizer import target_bytes
from pico.errors import PicoError

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=40)
SEEDS = st.integers(-(2**63), 2**63)


@given(LENGTHS, st.integers(1, 12))
def test_every_id_is_in_one_place_of_one_row(lengths, row_len):
    sizes = np.asarray(lengths, np.int64)
    document, row, at, offset, length = segments(np.cumsum(sizes) - sizes, sizes, row_len)
    places = [(r, a + k) for r, a, n in zip(row, at, length, strict=True) for k in range(n)]
    ids = [(d, o + k) for d, o, n in zip(document, offset, length, strict=True) for k in range(n)]
    assert places == [divmod(place, row_len) for place in range(sizes.sum())]  # no gaps, and the order of the stream
    assert ids == [(d, k) for d, size in enumerate(lengths) for k in range(size)]


def test_shards_hold_the_rows_in_order_in_the_published_layout(tmp_path):
    rows = np.arange(7 * 5, dtype=np.int32).reshape(7, 5)
    for number in range(3):
        write_rows(tmp_path / shard_name(number, 3), rows[3 * number : 3 * number + 3])
    paths = sorted(tmp_path.glob("*"))
    assert [path.name for path in paths] == [f"train-0000{k}-of-00003.parquet" for k in range(3)]
    tables = [pq.read_table(path) for path in paths]
    assert [table.num_rows for table in tables] == [3, 3, 1]
    assert str(tables[0].schema.field("input_ids").type.value_type) == "int32"
    assert [row for table in tables for row in table["input_ids"].to_pylist()] == rows.tolist()


def hashes(n):
    return halves([hashlib.sha256(str(k).encode()).hexdigest() for k in range(n)])[0]


def test_documents_are_held_out_by_hash_alone():
    assert low_hashes(hashes(20_000), 0.1).mean() == pytest.approx(0.1, abs=0.01)
    assert low_hashes(hashes(50), 1.0).all()
    assert not low_hashes(hashes(50), 0.0).any()
    identity = hashlib.sha256(b"0").hexdigest()
    assert low_hashes(hashes(1), int(identity[:13], 16) / 2**52 + 1e-9).all()
    assert not low_hashes(hashes(1), int(identity[:13], 16) / 2**52 - 1e-9).any()


@given(SEEDS, st.integers(0, 3))
def test_the_order_is_a_pure_function_of_hash_seed_and_copy(seed, copy):
    keys = order_keys(hashes(50), seed, copy)
    assert len(np.unique(keys)) == 50
    assert np.array_equal(order_keys(hashes(50)[::-1], seed, copy), keys[::-1])
    other = np.argsort(order_keys(hashes(50), seed, copy + 1))
    assert not np.array_equal(other, np.argsort(keys))
    assert not np.array_equal(np.argsort(order_keys(hashes(50), seed + 1, copy)), np.argsort(keys))


def test_every_place_in_the_order_is_as_likely_for_every_document():
    places = np.stack([np.argsort(np.argsort(order_keys(hashes(200), seed, 0))) for seed in range(300)])
    assert places.mean(axis=0) == pytest.approx(99.5, abs=6 * 57.7 / 300**0.5)  # six standard errors
    assert abs(np.corrcoef(places[:, :50].T)[np.triu_indices(50, 1)]).max() < 0.35


@given(st.floats(0, 4))
def test_copies_are_as_many_as_was_said(repetitions):
    times = copies(hashes(3000), repetitions)
    assert set(times.tolist()) <= {math.floor(repetitions), math.floor(repetitions) + 1}
    assert times.mean() == pytest.approx(repetitions, abs=0.06)


@given(st.dictionaries(st.sampled_from("abcde"), st.integers(1, 10**12), min_size=1), st.floats(0.1, 8), st.data())
def test_a_mixture_keeps_its_shares_and_its_limit(tokens, limit, data):
    shares = {domain: data.draw(st.floats(0.01, 10)) for domain in tokens}
    seen = mixture(tokens, shares, limit)
    assert max(seen.values()) == pytest.approx(limit)
    given_tokens = {domain: seen[domain] * tokens[domain] for domain in tokens}
    total, whole = sum(given_tokens.values()), sum(shares.values())
    for domain, value in given_tokens.items():
        assert value / total == pytest.approx(shares[domain] / whole)
    assert mixture(tokens, None, limit) == dict.fromkeys(tokens, 1.0)
    with pytest.raises(PicoError, match="give every domain of the corpus a share"):
        mixture(tokens, shares | {"another": 1.0}, limit)


@given(st.integers(0, 200), st.integers(1, 7))
def test_rows_are_spread_evenly(rows, limit):
    chosen = spread_evenly(rows, limit)
    assert len(chosen) == min(limit, rows)
    assert len(set(chosen.tolist())) == len(chosen)
    assert ((chosen >= 0) & (chosen < rows)).all()
    if len(chosen) > 1:
        assert np.diff(chosen).min() >= max(1, rows // limit)


def test_bytes_are_those_of_the_targets():
    assert target_bytes(np.array([[1, 2, 0], [2, 1, 1]]), np.array([0, 1, 3])).tolist() == [3, 2]


def test_the_unigram_baseline_of_known_counts():
    bits = unigram_bits(np.array([0, 3, 1]))  # add-one counts 1, 4, 2 of 7
    assert np.exp2(-bits).tolist() == pytest.approx([1 / 7, 4 / 7, 2 / 7])
    heldout = {
        "a": (np.array([[9, 1, 2]]) % 3, np.array([4])),
        "b": (np.array([[0, 0, 1]]), np.array([1])),
        "none": (np.zeros((0, 3), np.int32), np.zeros(0, np.int64)),
    }
    a, b = math.log2(7 / 4) + math.log2(7 / 2), math.log2(7) + math.log2(7 / 4)
    found = bits_per_byte(bits, heldout)
    assert found == pytest.approx({"a": a / 4, "b": b, "all": (a + b) / 5})
