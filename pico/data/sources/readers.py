"""How a file becomes documents: one small generator a format, found by name or by the file's ending.

A reader takes a binary stream and gives texts, in the order of the file, as many as there are (empty ones too: they are
counted and dropped further on). Add one by writing a function and naming it in READERS.
"""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from pico.data.sources import shipped_readers as special_readers
from pico.data.sources.reading import (
    COMPRESSIONS,
    MAX_TEXT,
    File,
    decompressed,
    lines,
    seekable,
    too_long,
    torn_files_named,
    whole,
)
from pico.errors import PicoError

ROWS = 1024
"""Parquet rows held in memory at a time, where they are small."""
BATCH_BYTES = 2**26
"""What the rows held at a time could come to at most: a dictionary may give every row the longest text of its chunk."""
TOKENS = "tokens"
"""The reader of rows that are token ids already: pico/data/sources/token_rows.py."""

Reader = Callable[[IO[bytes], File], Iterator[str]]


def documents(stream: IO[bytes], file: File, reader_name: str = "auto") -> Iterator[str]:
    """The texts in a file, which may be compressed. Raises PicoError naming the file and the place in it."""
    read = find_reader(reader_name) or READERS[reader_for(file.name)]
    with torn_files_named(file):
        yield from read(decompressed(stream, file), file)


def find_reader(name: str) -> Reader | None:
    """The reader of that name, None for `auto`. Raises PicoError listing the names."""
    if name == "auto":
        return None
    if name not in READERS:
        known = ", ".join(["auto", *sorted([*READERS, TOKENS])])
        raise PicoError(f"no reader is called {name!r}", mend=f"use one of: {known}")
    return READERS[name]


def reader_for(name: str) -> str:
    """The reader for a file's ending, the compression's left aside."""
    path = PurePosixPath(name.lower())
    ending = PurePosixPath(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
    if ending not in ENDINGS:
        known = " ".join(sorted(ENDINGS))
        raise PicoError(
            f"{name}: no reader is known for files that end in {ending or 'nothing'!r}",
            mend=f"narrow `glob` to readable files ({known}; each may be .gz, .zst or .xz), or name a `reader`",
        )
    return ENDINGS[ending]


def _no_text_field(file: File, present: list[str], place: str = "") -> PicoError:
    return PicoError(
        f"{file.name} has no text column {file.text_field!r}{place}",
        where=f"present: {', '.join(present) or 'none'}",
        mend="set `text_field` of this source to the one that holds the text",
    )


def read_text(stream: IO[bytes], file: File) -> Iterator[str]:
    """The whole file is one document."""
    yield whole(stream, file.name)


def read_jsonl(stream: IO[bytes], file: File) -> Iterator[str]:
    """One JSON object a line; `text_field` holds the text. Blank lines are skipped; null is an empty document."""
    for number, line in enumerate(lines(stream, file.name), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PicoError(f"{file.name} line {number} is not JSON: {error}", mend="correct the line") from error
        if not isinstance(row, dict) or file.text_field not in row:
            raise _no_text_field(file, list(row) if isinstance(row, dict) else [], f" in line {number}")
        text = row[file.text_field]
        if text is not None and not isinstance(text, str):
            raise PicoError(
                f"{file.name} line {number}: {file.text_field!r} is {type(text).__name__}, not text", mend="correct it"
            )
        yield text or ""


def read_csv(stream: IO[bytes], file: File) -> Iterator[str]:
    """Comma-separated rows (tab-separated in .tsv) under a header; column `text_field` holds the text."""
    csv.field_size_limit(MAX_TEXT)  # the csv module's own limit is 131,072, less than many documents have
    delimiter = "\t" if ".tsv" in PurePosixPath(file.name.lower()).suffixes else ","
    rows = csv.reader(lines(stream, file.name), delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
        if file.text_field not in header:
            raise _no_text_field(file, header)
        column = header.index(file.text_field)
        for row in rows:
            if row and len(row) <= column:
                raise PicoError(
                    f"{file.name} line {rows.line_num}: {len(row)} columns, but the header has {len(header)}",
                    mend="correct the row: it may lack quotes",
                )
            if row:
                yield row[column]
    except csv.Error as error:
        raise PicoError(f"{file.name} line {rows.line_num} is not CSV: {error}", mend="correct the line") from error


def read_parquet(stream: IO[bytes], file: File) -> Iterator[str]:
    """Column `text_field` of a Parquet file; null is an empty document."""
    with seekable(stream) as plain:
        table = pq.ParquetFile(plain)
        if file.text_field not in table.schema_arrow.names:
            raise _no_text_field(file, table.schema_arrow.names)
        kind = table.schema_arrow.field(file.text_field).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise PicoError(f"{file.name}: column {file.text_field!r} is {kind}, not text", mend="set `text_field`")
        given = 0
        for row, value in enumerate(parquet_values(table, file)):
            try:
                text = value.as_py() or ""
            except UnicodeDecodeError as error:
                raise PicoError(
                    f"{file.name} row {row} is not UTF-8: byte 0x{error.object[error.start]:02x} "
                    f"at offset {error.start} of the text",
                    mend="correct the row",
                ) from None
            given += len(text)
            if len(text) > MAX_TEXT:
                raise too_long(f"{file.name} row {row}")
            if file.max_bytes is not None and given > file.max_bytes:
                raise file.bomb()
            yield text


def parquet_values(table: pq.ParquetFile, file: File) -> Iterator[pa.Scalar]:
    """The values of column `file.text_field`, of which few are held at a time.

    A text that stands once in a chunk's dictionary may be that of all its rows: 1 kB of file can come to terabytes. No
    text is larger than its chunk, so that gives the number of rows that can safely be decoded together.
    """
    paths = [table.schema.column(number).path.split(".")[0] for number in range(len(table.schema))]
    leaf = paths.index(file.text_field)
    chunks = [table.metadata.row_group(group).column(leaf).total_uncompressed_size
              for group in range(table.num_row_groups)]  # fmt: skip
    if file.max_bytes is not None and sum(chunks) > file.max_bytes:
        raise file.bomb()
    for group, size in enumerate(chunks):
        rows = min(ROWS, max(1, BATCH_BYTES // max(1, size)))
        for batch in table.iter_batches(rows, row_groups=[group], columns=[file.text_field], use_threads=False):
            yield from batch.column(0)


READERS: dict[str, Reader] = {
    "text": read_text,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "parquet": read_parquet,
    "chitchat": special_readers.read_chitchat,
    "dictionary": special_readers.read_dictionary,
    "encyclopedia": special_readers.read_encyclopedia,
    "drama": special_readers.read_drama,
    "apidocs": special_readers.read_apidocs,
}
"""By name."""
ENDINGS = {
    ".txt": "text",
    ".md": "text",
    ".text": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
"""File ending -> name of the reader that `auto` picks."""
