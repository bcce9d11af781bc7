"""The readers of common formats, those of a user's files, and the choice among all: by name or by the file's ending."""

import csv
import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from pico.data.sources import shipped_readers  # noqa: F401 (registers its readers)
from pico.data.sources.reading import (
    COMPRESSIONS,
    DAMAGED,
    MAX_TEXT,
    READERS,
    RESERVED,
    TOKENS,
    File,
    Reader,
    decompressed,
    lines,
    reader,
    seekable,
    too_long,
    torn_files_named,
    whole,
)
from pico.errors import PicoError
from pico.plugins import Registry, UserFile, line_of, load_user_files, named, read_user_files

ROWS = 1024
"""Parquet rows held in memory at a time, where they are small."""
BATCH_BYTES = 2**26
"""The most that the rows held at a time may come to: a dictionary may give every row the longest text of its chunk."""


def documents(stream: IO[bytes], file: File, chosen: Reader | None = None) -> Iterator[str]:
    """Yields the texts in a file, which may be compressed; the reader is by default the one for its ending.

    Raises PicoError naming the file and the place in it.
    """
    chosen = chosen or find_reader("auto", file.name)
    with torn_files_named(file):
        yield from chosen.function(decompressed(stream, file), file)


def find_reader(name: str, path: str) -> Reader:
    """Returns the reader of that name; for `auto` the one for the ending of `path`, the compression's left aside.

    Raises PicoError listing the names or the endings where there is none.
    """
    if name != "auto":
        check_reader(name)
        return READERS[name]
    parts = PurePosixPath(path.lower())
    ending = PurePosixPath(parts.stem).suffix if parts.suffix in COMPRESSIONS else parts.suffix
    by_ending = {ending: one for one in READERS.values() for ending in one.endings}
    if ending not in by_ending:
        known = " ".join(sorted(by_ending))
        raise PicoError(
            f"{path}: no reader is known for files that end in {ending or 'nothing'!r}",
            mend=f"narrow `glob` to readable files ({known}; each may be .gz, .zst or .xz), or name a `reader`",
        )
    return by_ending[ending]


def check_reader(name: str) -> None:
    """Raises PicoError listing the names where the settings of a source cannot name this reader."""
    if name not in (*READERS, *RESERVED):
        known = ", ".join(["auto", *sorted([*READERS, TOKENS])])
        mend = f"use one of: {known}; your own readers' files are named in corpus.files"
        raise PicoError(f"no reader is called {name!r}", mend=mend)


def read_reader_files(paths: Sequence[str], root: Path = Path()) -> tuple[UserFile, ...]:
    """Reads the files of setting `corpus.files`; see `pico.plugins.read_user_files`."""
    return read_user_files(paths, root, setting="corpus.files", page="docs/custom-readers.md")


def load_reader_files(files: Sequence[UserFile]) -> tuple[str, ...]:
    """Imports the files, which registers their readers. Returns the names of these.

    Errors that a reader raises later, while it reads, are PicoErrors that name its file and line, and the file it read.
    """
    return load_user_files(files, Registry("reader", READERS, _guarded))[0]


def _guarded(entry: Reader, source: UserFile) -> Reader:
    """Returns a user's reader with its origin, whose errors are named."""

    @functools.wraps(entry.function)
    def guarded(stream: IO[bytes], file: File) -> Iterator[str]:
        with named(source, line_of(entry), passing=DAMAGED):
            try:
                for text in entry.function(stream, file):
                    if not isinstance(text, str):
                        raise TypeError(f"reader {entry.name!r} gave {type(text).__name__}, not text")
                    yield text
            except (PicoError, *DAMAGED):
                raise
            except Exception as error:
                what = f"{type(error).__name__}: {error}, while it read {file.name}"
                raise RuntimeError(what).with_traceback(error.__traceback__) from error

    return replace(entry, function=guarded, origin=f"{source.path} sha256:{source.sha256}")


def _no_text_field(file: File, present: list[str], place: str = "") -> PicoError:
    return PicoError(
        f"{file.name} has no text column {file.text_field!r}{place}",
        where=f"present: {', '.join(present) or 'none'}",
        mend="set `text_field` of this source to the one that holds the text",
    )


@reader("text", endings=(".txt", ".md", ".text"))
def read_text(stream: IO[bytes], file: File) -> Iterator[str]:
    """Reads the whole file as one document."""
    yield whole(stream, file.name)


@reader("jsonl", endings=(".jsonl", ".ndjson"))
def read_jsonl(stream: IO[bytes], file: File) -> Iterator[str]:
    """Reads one JSON object a line; `text_field` holds the text. Blank lines are skipped; null is an empty document."""
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


@reader("csv", endings=(".csv", ".tsv"))
def read_csv(stream: IO[bytes], file: File) -> Iterator[str]:
    """Reads comma-separated rows (tab-separated in .tsv) under a header; column `text_field` holds the text."""
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


@reader("parquet", endings=(".parquet",))
def read_parquet(stream: IO[bytes], file: File) -> Iterator[str]:
    """Reads column `text_field` of a Parquet file; null is an empty document."""
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
    """Yields the values of column `file.text_field`, of which few are held at a time.

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
