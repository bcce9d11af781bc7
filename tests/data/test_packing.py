"""Packing, held-out choice and the unigram baseline: nothing lost, order from the seed alone, known values."""

import hashlib
import math
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pico.data.baseline import bits_per_byte, unigram_bits
from pico.data.heldout import held_out, heldout_sample, is_low, target_bytes
from pico.data.packing import pack, write_shards

LENGTHS = st.lists(st.integers(1, 30), max_size=40)
SEEDS = st.integers(-(2**63), 2**63)


def documents(lengths):
    """Documents whose ids tell where they come from: all ids differ."""
    return np.arange(sum(lengths), dtype=np.int32), np.asarray(lengths, np.int64)


@given(LENGTHS, st.integers(1, 12), SEEDS)
def test_every_token_is_in_one_row_or_in_the_tail(lengths, seq_len, seed):
    tokens, sizes = documents(lengths)
    rows, tail = pack(tokens, sizes, seq_len=seq_len, seed=seed)
    assert rows.shape == (len(tokens) // (seq_len + 1), seq_len + 1)
    assert len(tail) < seq_len + 1
    assert sorted([*rows.reshape(-1).tolist(), *tail.tolist()]) == tokens.tolist()


@given(LENGTHS, st.integers(1, 12), SEEDS)
def test_order_is_a_pure_function_of_the_seed_and_documents_stay_whole(lengths, seq_len, seed):
    tokens, sizes = documents(lengths)
    first, again = (pack(tokens, sizes, seq_len=seq_len, seed=seed) for _ in range(2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    ends = set((np.cumsum(sizes) - 1).tolist())
    for row in first[0]:  # within a row an id is followed by the next of its document, or its document ends
        assert all(after == before + 1 or before in ends for before, after in pairwise(row))


def test_another_seed_is_another_order():
    tokens, sizes = documents([5] * 100)
    one, two = (pack(tokens, sizes, seq_len=4, seed=seed)[0] for seed in (1, 2))
    assert not np.array_equal(one, two)


def test_shards_hold_the_rows_in_order_in_the_published_layout(tmp_path):
    rows = np.arange(7 * 5, dtype=np.int32).reshape(7, 5)
    paths = write_shards(rows, tmp_path, 3)
    assert [path.name for path in paths] == [f"train-0000{k}-of-00003.parquet" for k in range(3)]
    tables = [pq.read_table(path) for path in paths]
    assert [table.num_rows for table in tables] == [3, 3, 1]
    assert str(tables[0].schema.field("input_ids").type.value_type) == "int32"
    assert [row for table in tables for row in table["input_ids"].to_pylist()] == rows.tolist()


def digests(n):
    return [hashlib.sha256(str(k).encode()).hexdigest() for k in range(n)]


@given(st.integers(1, 60), st.floats(0, 1))
def test_documents_are_held_out_by_hash_alone_and_every_domain_has_one(n, fraction):
    ids = digests(n)
    chosen = held_out(ids, fraction)
    assert chosen.any()
    expected = [identity for identity in ids if is_low(identity, fraction)] or [min(ids)]
    assert sorted(identity for identity, out in zip(ids, chosen, strict=True) if out) == sorted(expected)
    assert np.array_equal(held_out(ids[::-1], fraction), chosen[::-1])


def test_the_held_out_share_is_the_fraction():
    assert held_out(digests(20_000), 0.1).mean() == pytest.approx(0.1, abs=0.01)
    assert held_out(digests(50), 1.0).all()
    assert held_out(digests(50), 0.0).sum() == 1


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 7))
def test_held_out_rows_are_whole_distinct_and_spread(tokens, row_len, limit):
    rows = heldout_sample(np.arange(tokens, dtype=np.int32), row_len, limit)
    whole = tokens // row_len
    assert len(rows) == min(limit, whole)
    starts = rows[:, 0]
    assert (np.diff(rows, axis=1) == 1).all()
    assert (starts % row_len == 0).all()
    if len(starts) > 1:
        assert (np.diff(starts) >= row_len * (whole // limit or 1)).all()


def test_bytes_are_those_of_the_targets():
    assert target_bytes(np.array([[1, 2, 0], [2, 1, 1]]), np.array([0, 1, 3])).tolist() == [3, 2]


def test_the_unigram_baseline_of_known_counts():
    training = np.array([[1, 1, 1, 2]], np.int32)  # add-one counts 1, 4, 2 of 7
    bits = unigram_bits(training, 3)
    assert np.exp2(-bits).tolist() == pytest.approx([1 / 7, 4 / 7, 2 / 7])
    heldout = {
        "a": (np.array([[9, 1, 2]]) % 3, np.array([4])),
        "b": (np.array([[0, 0, 1]]), np.array([1])),
        "none": (np.zeros((0, 3), np.int32), np.zeros(0, np.int64)),
    }
    a, b = math.log2(7 / 4) + math.log2(7 / 2), math.log2(7) + math.log2(7 / 4)
    found = bits_per_byte(bits, heldout)
    assert found == pytest.approx({"a": a / 4, "b": b, "all": (a + b) / 5})
