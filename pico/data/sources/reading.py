"""Everything that a reader is made of: the decorator, and files unpacked within limits, decoded strictly, and named.

A reader is a generator function: it takes a binary stream and a `File`, and yields the texts in the order of the file,
as many as there are (empty ones too: they are counted and dropped further on). `@reader(name)` registers it.

Nothing here trusts a file. A text is held in memory whole, so it has a largest size; what is compressed has a largest
size that it may unpack to.
"""

import gzip
import io
import json
import lzma
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any, cast

import pyarrow as pa

from pico.errors import PicoError

BOM = b"\xef\xbb\xbf"
COMPRESSIONS = (".gz", ".zst", ".xz")
MAX_TEXT = 2**27
"""Bytes of the longest text, line or field that is read. Longer ones are no documents but files without their line
ends; a hundred times longer than any that is worth training on."""
SMALL = 2**26
"""Bytes that any file may unpack to, however small it is."""
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, pa.ArrowException)
"""The exceptions that decompressors and Parquet raise on damaged bytes."""


@dataclass(frozen=True)
class File:
    """A file, as readers see it beside its bytes."""

    name: str
    """Its path in the wheel or the corpus folder, as errors name it."""
    text_field: str = "text"
    """The column or key that holds the text."""
    max_bytes: int | None = None
    """Bytes that it may unpack to, where it is compressed; None for no limit."""
    place: str = ""
    """Its path below the corpus folder or in the wheel: the same wherever these lie."""

    def bomb(self) -> PicoError:
        """Returns the error of a file that unpacks to more."""
        return PicoError(
            f"{self.name} was refused: it unpacks to more than {self.max_bytes} bytes, as a bomb does",
            mend="use another file; if it is sound, raise corpus.max_expansion (how many times its size a file may be)",
        )


Read = Callable[[IO[bytes], File], Iterator[str]]


@dataclass(frozen=True)
class Reader:
    """A registered reader."""

    name: str
    function: Read
    endings: tuple[str, ...] = ()
    """The endings of the files that it reads where a source names no reader."""
    origin: str = ""
    """The user's file that it is from, with its sha256; empty for those of this project."""


READERS: dict[str, Reader] = {}
"""All readers by name; `reader` fills it."""
TOKENS = "tokens"
"""The value of `reader` for rows that are token ids already: pico/data/sources/token_rows.py."""
RESERVED = ("auto", TOKENS)
"""Values of `reader` in the settings of a source that no function is called."""


def reader(name: str, *, endings: Sequence[str] = ()) -> Callable[[Read], Read]:
    """Registers a function as the reader `name`. Returns a decorator.

    endings: such as `.xyz`, in lower case; the compression's comes after it and is not named. A source whose `reader`
    is `auto` reads files of these endings with it. Raises PicoError where a name or an ending is taken or of no use.
    """

    def register(function: Read) -> Read:
        where = f"{function.__code__.co_filename}, line {function.__code__.co_firstlineno}"
        if name in READERS or name in RESERVED:
            raise PicoError(f"a reader named {name!r} is registered already", where=where, mend="rename it")
        taken = {ending: one.name for one in READERS.values() for ending in one.endings}
        for ending in endings:
            if PurePosixPath(f"a{ending}").suffix != ending or ending != ending.lower() or ending in COMPRESSIONS:
                what = f"reader {name!r}: {ending!r} is no ending of a file, such as '.xyz'"
                raise PicoError(what, where=where, mend="correct it; compressed files need no reader of their own")
            if ending in taken:
                what = f"files that end in {ending!r} are read by {taken[ending]!r} already"
                raise PicoError(what, where=where, mend="leave it out of `endings`, and name the reader in the source")
        READERS[name] = Reader(name, function, tuple(endings))
        return function

    return register


def unpacked_limit(packed: int, expansion: float) -> int:
    """Returns the bytes that a file of `packed` bytes may unpack to: `expansion` times its size, or SMALL if more."""
    return max(SMALL, int(expansion * packed))


def decompressed(stream: IO[bytes], file: File) -> IO[bytes]:
    """Returns the stream, unpacked if the file's ending says that it is compressed, and ended at `file.max_bytes`."""
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
    """Refuses to give more than `file.max_bytes`: the guard against bombs."""

    def __init__(self, inner: Any, file: File) -> None:
        self._inner, self._file, self._left = inner, file, file.max_bytes or 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._inner.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise self._file.bomb()
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def seekable(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """Yields the stream itself where it is a plain file; else a copy on disk, as Parquet is read from its end."""
    if isinstance(getattr(stream, "raw", None), io.FileIO):
        yield stream
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(stream, copy, 2**20)
        copy.seek(0)
        yield cast(IO[bytes], copy)


@contextmanager
def torn_files_named(file: File) -> Iterator[None]:
    """Turns what decompressors and Parquet raise on damaged bytes into a PicoError that names the file."""
    try:
        yield
    except DAMAGED as error:
        # What the decompressors raise carries no errno; a missing permission does.
        damaged = getattr(error, "errno", None) is None
        mend = "replace it: it is cut short or damaged" if damaged else "check the file and the disk"
        raise PicoError(f"{file.name} cannot be read: {error}", mend=mend) from error


def decode(data: bytes, name: str, start: int = 0) -> str:
    """Decodes UTF-8. `start`: where `data` lies in the file. Raises PicoError naming file and byte offset."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PicoError(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at offset {start + error.start}",
            mend="convert it, for instance: iconv -f WINDOWS-1252 -t UTF-8 old > new",
        ) from None


def too_long(what: str) -> PicoError:
    """Returns the error of a text that is longer than MAX_TEXT."""
    return PicoError(
        f"{what} is longer than {MAX_TEXT} bytes, the longest text that is read",
        mend="cut it into documents, for instance a file or a line of .jsonl each",
    )


def whole(stream: IO[bytes], name: str) -> str:
    """Reads a whole file as text, without a byte order mark and with Unix line ends."""
    data = stream.read(MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
        raise too_long(name)
    skip = len(BOM) if data.startswith(BOM) else 0
    return decode(data[skip:], name, skip).replace("\r\n", "\n")


def lines(stream: IO[bytes], name: str) -> Iterator[str]:
    """Yields the lines of a file, line ends kept."""
    offset, number = 0, 0
    while line := stream.readline(MAX_TEXT + 1):
        number += 1
        if len(line) > MAX_TEXT:
            raise too_long(f"{name} line {number}")
        skip = len(BOM) if offset == 0 and line.startswith(BOM) else 0
        yield decode(line[skip:], name, offset + skip)
        offset += len(line)


def parsed_json(stream: IO[bytes], name: str) -> Any:
    """Reads a whole file of JSON."""
    try:
        return json.loads(whole(stream, name))
    except (ValueError, RecursionError) as error:
        raise PicoError(f"{name} is not JSON: {error}", mend="correct the file or the reader") from error


@contextmanager
def shape_named(file: File) -> Iterator[None]:
    """Turns a missing key or a wrong type in a special format into a PicoError that names the file."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise PicoError(
            f"{file.name} has not the shape that its reader expects ({type(error).__name__}: {error})",
            mend="choose the `reader` that fits this file",
        ) from error
