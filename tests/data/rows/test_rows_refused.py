"""Rows that are no ids, or do not fit the settings, are refused by file, row and setting."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_documents import packing
from rows_of_ids import ROW, all_rows, fetched, prepared, table

from pico.data.preparation.shards import write_rows
from pico.errors import PicoError


def spoilt(published, root, change):
    """A folder of rows of which the second file is spoilt; `change` is given its rows as lists."""
    folder = root / "rows"
    folder.mkdir()
    theirs = all_rows(published / "rows")
    write_rows(folder / "a.parquet", theirs[:60])
    pq.write_table(change(theirs[60:120].tolist()), folder / "b.parquet")
    return folder


def with_row(rows, number, row):
    return table([*rows[:number], row, *rows[number + 1 :]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: with_row(rows, 7, rows[7][:-1]), r"b\.parquet row 7 has 16 ids, the first row 17"),
        (lambda rows: with_row(rows, 7, None), r"b\.parquet row 7 has 0 ids"),
        (lambda rows: with_row(rows, 7, [-1, *rows[7][1:]]), r"b\.parquet row 7: -1 is no token id"),
        (lambda rows: with_row(rows, 7, [2**40, *rows[7][1:]]), r"b\.parquet row 7: 1099511627776 is no token id"),
        (lambda rows: with_row(rows, 7, [None, *rows[7][1:]]), r"b\.parquet row 7: an id is null"),
        (
            lambda rows: table(rows, pa.list_(pa.float32())),
            r"b\.parquet: column 'input_ids' is list<.*float.*not lists of",
        ),
        (lambda rows: pa.table({"input_ids": ["text"] * 5}), r"b\.parquet: column 'input_ids' is string, not lists of"),
        (
            lambda rows: pa.table({"ids": rows}),
            r"b\.parquet has no column 'input_ids' of token ids\n  where: present: ids",
        ),
        (lambda rows: table([[5] * 10**7]), r"b\.parquet was refused: it unpacks to more than"),
    ],
)
def test_what_is_no_row_of_ids_is_refused_with_file_and_row(published, tmp_path, change, message, monkeypatch):
    monkeypatch.setattr("pico.data.sources.reading.SMALL", 2**24)
    folder = spoilt(published, tmp_path, change)
    with pytest.raises(PicoError, match=message) as raised:
        fetched(published, tmp_path, folder)
    assert raised.value.what.startswith("source 'ready': ")
    assert raised.value.mend
    assert not list((tmp_path / "documents").glob("*.parquet"))


def test_rows_of_another_length_than_the_models_are_refused_with_the_setting(made):
    with pytest.raises(PicoError, match=r"rows of source 'ready' have 17 ids, not packing.seq_len \+ 1 = 33") as raised:
        prepared(made[0] / "documents", packing=packing(seq_len=32))
    assert "packing.seq_len = 32" in raised.value.where
    assert "set packing.seq_len = 16" in raised.value.mend


def test_an_id_without_an_entry_is_refused_with_file_row_and_setting(published, tmp_path):
    folder = spoilt(published, tmp_path, lambda rows: with_row(rows, 7, [*rows[7][:-1], 300]))
    with pytest.raises(PicoError, match=r"source 'ready': b\.parquet row 7 holds id 300, .* 300 entries") as raised:
        prepared(fetched(published, tmp_path, folder))
    assert "ready.parquet row 67; params.yaml: tokenizer.vocab_size = 300" in raised.value.where


def test_the_ids_of_another_tokenizer_are_refused(published, tmp_path):
    folder = spoilt(published, tmp_path, table)
    write_rows(folder / "a.parquet", np.full((50, ROW), 7))
    (folder / "b.parquet").unlink()
    with pytest.raises(
        PicoError, match=r"no row of source 'ready' holds the end of a document \(<\|endoftext\|>, id 0\)"
    ):
        prepared(fetched(published, tmp_path, folder))
