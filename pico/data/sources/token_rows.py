"""Sources that are token ids already: rows of one length, in Parquet files or a dataset, kept with where they lay.

The layout is that of the published pre-tokenized data set: a column of lists of `seq_len` + 1 ids. Stage `fetch`
writes them to `<source>.parquet` with the columns of SCHEMA: `file` and `row` say where a row was read; its id is the
sha256 of its ids as little-endian int32. Text can be had from them only by the tokenizer that made them.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pico.config import Source
from pico.data.sources.reading import File, decompressed, seekable, torn_files_named
from pico.errors import PicoError
from pico.files import full_disk_named

SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("id", "source", "domain", "file")),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
    ]
)
ROWS = 256
"""Rows that are read at a time."""
ROW_GROUP_IDS = 2**22
"""Ids in a row group of what is written: 16 MB."""
ID_BYTES = 4

Part = tuple[str, int, pa.Array]
"""The file that rows are in, the number of the first of them, and a list column."""


def parts_of(stream: IO[bytes], file: File) -> Iterator[Part]:
    """Yields the rows of one Parquet file, which may be compressed as a whole."""
    with torn_files_named(file), seekable(decompressed(stream, file)) as plain:
        table = pq.ParquetFile(plain)
        names = table.schema_arrow.names
        if file.text_field not in names:
            raise PicoError(
                f"{file.name} has no column {file.text_field!r} of token ids",
                where=f"present: {', '.join(names) or 'none'}",
                mend="set `text_field` of this source to the one that holds the ids, for instance `input_ids`",
            )
        paths = [table.schema.column(number).path.split(".")[0] for number in range(len(table.schema))]
        leaf = paths.index(file.text_field)
        ids = sum(table.metadata.row_group(group).column(leaf).num_values for group in range(table.num_row_groups))
        if file.max_bytes is not None and ID_BYTES * ids > file.max_bytes:
            raise file.bomb()
        first = 0
        for batch in table.iter_batches(ROWS, columns=[file.text_field], use_threads=False):
            yield file.place or file.name, first, batch.column(0)
            first += len(batch)


def as_ids(part: Part, row_len: int | None, column: str) -> np.ndarray:
    """Returns the ids of some rows: int32, (rows, row_len).

    Raises PicoError naming file and row where a column is not of whole numbers, a row is not as long as the first
    (`row_len`, None for the first rows), or an id cannot be one.
    """
    name, first, lists = part
    kind = lists.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_integer(kind.value_type):
        raise PicoError(
            f"{name}: column {column!r} is {kind}, not lists of token ids",
            mend="set `text_field` to the column of ids; for text, leave `reader: tokens` out",
        )
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    expected = int(lengths[0]) if row_len is None else row_len
    wrong = np.flatnonzero(lengths != expected)
    if len(wrong) or not expected:
        at = int(wrong[0]) if len(wrong) else 0
        raise PicoError(
            f"{name} row {first + at} has {lengths[at]} ids, the first row {expected or 'none'}: all must have as many",
            mend="cut it into rows of packing.seq_len + 1 ids, or take it out",
        )
    values = lists.flatten()
    if values.null_count:
        at = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise PicoError(f"{name} row {first + at // expected}: an id is null", mend="correct the row")
    ids = values.to_numpy(zero_copy_only=False)
    outside = np.flatnonzero((ids < 0) | (ids > np.iinfo(np.int32).max))
    if len(outside):
        at = int(outside[0])
        raise PicoError(f"{name} row {first + at // expected}: {ids[at]} is no token id", mend="correct the row")
    return ids.astype(np.int32).reshape(-1, expected)


def write(path: Path, source: Source, parts: Iterable[Part]) -> dict[str, int]:
    """Writes all rows, or as many as come to `max_bytes` at ID_BYTES an id. Returns the counts for sources.json."""
    column, max_bytes = ((source.hub and source.hub.columns) or [source.text_field])[0], source.max_bytes
    row_len: int | None = None
    count, held = 0, 0
    waiting: list[pa.Table] = []
    options: Any = {"compression": "zstd", "compression_level": 3, "use_dictionary": ["source", "domain", "file"]}
    with full_disk_named(path), pq.ParquetWriter(path, SCHEMA, write_statistics=False, **options) as writer:
        for part in parts:
            if not len(part[2]):
                continue
            rows = as_ids(part, row_len, column)
            row_len = rows.shape[1]
            room = len(rows) if max_bytes is None else max_bytes // (ID_BYTES * row_len) - count
            rows = rows[: max(0, room)]
            if len(rows):
                waiting.append(_table(rows, part, source))
            count, held = count + len(rows), held + rows.size
            if held >= ROW_GROUP_IDS:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                held, waiting = 0, []
            if len(rows) < len(part[2]):
                break
        if waiting:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())
    tokens = count * (row_len or 0)
    return {"documents": count, "bytes": ID_BYTES * tokens, "empty": 0, "tokens": tokens, "row_tokens": row_len or 0}


def _table(rows: np.ndarray, part: Part, source: Source) -> pa.Table:
    name, first, _ = part
    size = len(rows)
    # A row's id is the sha256 of its ids as little-endian int32, in hex.
    hashes = [hashlib.sha256(row.astype("<i4").tobytes()).hexdigest() for row in rows]
    offsets = pa.array(np.arange(size + 1, dtype=np.int32) * rows.shape[1])
    lists = pa.ListArray.from_arrays(offsets, pa.array(rows.reshape(-1)))
    named = ([value] * size for value in (source.name, source.domain, name))
    return pa.table([hashes, *named, np.arange(first, first + size), lists], schema=SCHEMA)
