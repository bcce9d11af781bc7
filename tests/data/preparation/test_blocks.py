"""Sorting on disk: one order over many files and batches, whatever the threads."""

import numpy as np
import pyarrow as pa

from pico.data.preparation.blocks import BATCH, Store, write_table


def test_a_sort_over_files_and_batches_is_in_order(tmp_path):
    store, random = Store(tmp_path), np.random.default_rng(0)
    (tmp_path / "index").mkdir()
    size = BATCH // 2 + 1
    keys = random.integers(0, 1000, 6 * size).astype(np.uint64)
    for number in range(6):
        own = slice(number * size, (number + 1) * size)
        table = pa.table({"key": keys[own], "doc": np.arange(6 * size)[own]})
        write_table(store.file("index", number), table)
    for _ in range(3):
        batches = list(store.sorted("index", "key, doc", "key, doc"))
        assert len(batches) > 2
        doc = np.concatenate([batch["doc"] for batch in batches])
        assert np.array_equal(doc, np.argsort(keys, kind="stable"))
    assert not list(store.sorted("nothing", "key", "key"))
    assert not list(store.sorted("index", "key", "key, doc", "key > 5000"))


def test_a_folder_that_is_there_is_not_made_again(tmp_path):
    store, calls = Store(tmp_path), []

    def make(folder):
        calls.append(1)
        (folder / "a").write_text("a")

    assert store.once("name", make) == store.once("name", make)
    assert len(calls) == 1
