"""The loader: the right rows whatever the shards and the cache, and a batch order that is a pure function."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pico.data.preparation.shards import shard_name, write_heldout, write_rows
from pico.data.tokens.loader import TokenRows, batch_indices, heldout_rows
from pico.errors import PicoError

ROWS = np.random.default_rng(0).integers(0, 50, (23, 9), dtype=np.int32)


@pytest.fixture(scope="module", params=["one group a shard", "many groups"])
def shards(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    for number in range(3):
        path = folder / shard_name(number, 3)
        write_rows(path, ROWS[10 * number : 10 * number + 10])
        if request.param == "many groups":
            pq.write_table(pq.read_table(path), path, row_group_size=3)
    return folder


@pytest.mark.parametrize("cache_bytes", [0, 300, 2**20])
def test_rows_are_the_rows_written_in_the_order_asked(shards, cache_bytes):
    rows = TokenRows(shards, cache_bytes=cache_bytes)
    assert (rows.n_rows, rows.row_len) == ROWS.shape
    asked = np.random.default_rng(1).integers(0, 23, 60)
    found = rows.rows(asked)
    assert found.dtype == np.int32
    assert np.array_equal(found, ROWS[asked])
    assert rows.rows(np.array([], int)).shape == (0, 9)
    with pytest.raises(IndexError, match="asked of 23"):
        rows.rows(np.array([23]))


def test_memory_is_bounded_by_the_cache(shards):
    rows = TokenRows(shards, cache_bytes=400)
    for index in range(23):
        rows.rows(np.array([index]))
        held = sum(group.nbytes for group in rows._cache.values())
        assert held <= 400 or len(rows._cache) == 1


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**63))
def test_each_epoch_takes_every_row_once_the_first_in_order(n_rows, batch_size, seed):
    steps = -(-3 * n_rows // batch_size)
    order = np.concatenate([batch_indices(step, batch_size, n_rows, seed) for step in range(steps)])
    assert order[:n_rows].tolist() == list(range(n_rows))
    for epoch in range(3):
        assert sorted(order[epoch * n_rows : (epoch + 1) * n_rows]) == list(range(n_rows))


def test_later_epochs_are_permutations_of_their_own():
    epochs = [batch_indices(epoch, 50, 50, 7).tolist() for epoch in range(3)]
    assert epochs[1] != epochs[2]
    assert epochs[1] != list(range(50))
    assert batch_indices(1, 50, 50, 8).tolist() != epochs[1]


@given(st.integers(0, 30), st.integers(0, 2**32))
def test_a_batch_is_the_same_however_it_is_reached(step, seed):
    direct = batch_indices(step, 6, 17, seed)
    assert np.array_equal(direct, np.concatenate([batch_indices(3 * step + k, 2, 17, seed) for k in range(3)]))


def test_held_out_rows_come_by_domain_in_order(tmp_path):
    for domain in ("verse", "prose"):
        write_heldout(tmp_path / "heldout" / f"{domain}.parquet", ROWS[:4], np.arange(4))
    found = heldout_rows(tmp_path)
    assert list(found) == ["prose", "verse"]
    ids, n_bytes = found["verse"]
    assert np.array_equal(ids, ROWS[:4])
    assert n_bytes.tolist() == [0, 1, 2, 3]


def test_missing_torn_foreign_and_ragged_shards_are_named(tmp_path):
    with pytest.raises(PicoError, match=r"holds no token shards[\s\S]*dvc repro prepare"):
        TokenRows(tmp_path)
    with pytest.raises(PicoError, match="no held-out rows"):
        heldout_rows(tmp_path)
    shard = tmp_path / "train-00000-of-00001.parquet"
    write_rows(shard, ROWS)
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(PicoError, match=r"train-00000-of-00001\.parquet cannot be read"):
        TokenRows(tmp_path)
    pq.write_table(pa.table({"text": ["a"]}), shard)
    with pytest.raises(PicoError, match=r"no column 'input_ids'"):
        TokenRows(tmp_path)
    pq.write_table(pa.table({"input_ids": [[1, 2], [1]]}), shard)
    with pytest.raises(PicoError, match="rows of 1 to 2 ids"):
        TokenRows(tmp_path)
