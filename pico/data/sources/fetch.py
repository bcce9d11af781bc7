"""A pinned source becomes `<source>.parquet`: a row a document (id, source, domain, text), in reading order."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pico.config import PretrainedTokenizer, Source
from pico.data.sources import hub, token_rows, wheels
from pico.data.sources.readers import check_reader, documents, find_reader
from pico.data.sources.reading import RESERVED, TOKENS, File, unpacked_limit
from pico.errors import PicoError
from pico.files import full_disk_named, sha256_file, write_atomic, write_json

SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("id", "source", "domain", "text")])
ROW_GROUP_BYTES = 2**24
"""Text in a row group, and so about what is held in memory."""

Progress = Callable[[float], None]


def check_sources(sources: Sequence[Source]) -> None:
    """Raises PicoError for what can be known to be wrong before anything is downloaded."""
    for name, times in Counter(source.name for source in sources).items():
        if times > 1:
            raise PicoError(
                f"{times} sources are called {name!r}", where="corpus.sources", mend="give each its own name"
            )
    for source in sources:
        with _named(source):
            check_reader(source.reader)
            for pattern in [source.glob, *source.exclude]:
                wheels.glob_matcher(pattern)
    ready = [source.name for source in sources if source.reader == TOKENS]
    if ready and len(ready) < len(sources):
        text = next(source.name for source in sources if source.reader != TOKENS)
        raise PicoError(
            f"source {ready[0]!r} is token ids (reader `tokens`), source {text!r} is text: they cannot be mixed, as "
            "ids can neither be cleaned nor held out by document",
            where="corpus.sources",
            mend="train on the one or the other, or tokenize the text with the same tokenizer into rows of ids",
        )


def fetch_source(
    source: Source,
    target: Path,
    *,
    folder: Path,
    wheel: Path | None = None,
    max_expansion: float = 200.0,
    progress: Progress = lambda fraction: None,
) -> dict[str, Any]:
    """Writes the documents of `source` to `<target>/<source>.parquet`. Returns its entry of sources.json.

    `folder` is `corpus.folder`, for kind `files`; `wheel` the downloaded file, for kind `wheel`; `max_expansion` how
    many times its size a file may unpack to; `progress` receives the fraction done. Whitespace-only documents are
    dropped and counted; with `max_bytes`, reading ends before the first document that would exceed it. Rows that are
    token ids already are written as `token_rows.py` says. Raises PicoError, naming the source, where there is
    nothing to read or it cannot be read; no file is left then.
    """
    reader_files: set[str] = set()
    with _named(source):
        pin, contents = _open(source, folder, wheel, max_expansion, progress, reader_files)
        path = target / f"{source.name}.parquet"
        try:
            counts = (token_rows.write if source.reader == TOKENS else _write)(path, source, contents)
            if not counts["documents"]:
                raise PicoError(
                    f"it gave no document ({counts['empty']} empty ones were dropped)",
                    where=pin,
                    mend="correct `glob`, `text_field` or `max_bytes`, or take the source out",
                )
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        progress(1.0)
    entry = {key: getattr(source, key) for key in ("name", "domain", "licence", "kind")} | {"pin": pin, **counts}
    return entry | ({"reader_files": sorted(reader_files)} if reader_files else {})


def write_sources(target: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Writes sources.json, in the order of the settings."""
    write_json(target / "sources.json", list(entries))


def fetch_tokenizer(pretrained: PretrainedTokenizer, wheel: Path, target: Path) -> Path:
    """Copies the tokenizer's member of the wheel, as it is, to `<target>/tokenizer/`. Returns the file."""
    with wheels.Archive(wheel, wheels.pin(pretrained.wheel)) as archive:
        data = archive.read(pretrained.member)
    path = target / "tokenizer" / Path(pretrained.member).name
    write_atomic(path, data)
    return path


def _open(
    source: Source, folder: Path, wheel: Path | None, max_expansion: float, progress: Progress, reader_files: set[str]
) -> tuple[str, Iterator[Any]]:
    """Returns the pin of the source's contents, and an iterator over its texts, or over parts of its rows of ids.

    The user's files whose readers were used, with their sha256, are added to `reader_files` on the way.
    """
    if source.kind == "hub":
        dataset = source.hub
        assert dataset is not None
        if source.reader not in RESERVED:
            raise PicoError(f"reader {source.reader!r} does not fit kind `hub`", mend="leave `reader` out")
        given = hub.parts if source.reader == TOKENS else hub.texts
        return hub.pin(dataset), given(source, dataset)
    if source.kind == "wheel":
        assert source.wheel is not None
        assert wheel is not None
        pin = wheels.pin(source.wheel)
        streams = _members(source, wheel, pin, max_expansion, progress)
    else:
        names = _find_files(source, folder)
        pin, streams = _files_pin(source, folder, names), _files(source, folder, names, max_expansion, progress)
    return pin, (_token_parts(streams) if source.reader == TOKENS else _texts(streams, source.reader, reader_files))


def _texts(streams: Iterator[tuple[IO[bytes], File]], reader: str, reader_files: set[str]) -> Iterator[str]:
    for stream, file in streams:
        chosen = find_reader(reader, file.name)
        if chosen.origin:
            reader_files.add(chosen.origin)
        yield from documents(stream, file, chosen)


def _token_parts(streams: Iterator[tuple[IO[bytes], File]]) -> Iterator[token_rows.Part]:
    for stream, file in streams:
        if find_reader("auto", file.name).name != "parquet":
            raise PicoError(
                f"{file.name}: reader `tokens` reads Parquet files", mend="narrow `glob`, or write it as Parquet"
            )
        yield from token_rows.parts_of(stream, file)


def _members(
    source: Source, path: Path, pin: str, max_expansion: float, progress: Progress
) -> Iterator[tuple[IO[bytes], File]]:
    """Yields the members of a wheel that match, in the order of their names."""
    with wheels.Archive(path, pin) as archive:
        names = _included(source, archive.members(source.glob))
        if not names:
            raise PicoError(f"no member matches glob {source.glob!r}", where=pin, mend="correct `glob` or `exclude`")
        total, done = sum(map(archive.size, names)), 0
        for name in names:
            limit = min(wheels.MAX_MEMBER_BYTES, unpacked_limit(archive.size(name), max_expansion))
            with archive.open(name) as stream:
                yield stream, File(name, source.text_field, limit, name)
            done += archive.size(name)
            progress(done / max(1, total))


def _find_files(source: Source, folder: Path) -> list[str]:
    """Returns the files of the corpus folder that match, as sorted `/`-separated paths below it.

    Hidden files and the folder's own README.md are no documents. Raises PicoError where the folder is missing, nothing
    matches, or a link leads out of the folder (DVC would not see a change there).
    """
    if not folder.is_dir():
        raise PicoError(
            f"folder {folder} does not exist", where="corpus.folder", mend="make it, or correct the setting"
        )
    matches, root, found = wheels.glob_matcher(source.glob), folder.resolve(), []
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if (Path(where) / name).is_symlink()]
        for name in [*files, *links]:
            path = Path(where) / name
            relative = path.relative_to(folder).as_posix()
            if name.startswith(".") or relative == "README.md":
                continue
            concerned = name in links or matches.fullmatch(relative)
            if concerned and not path.resolve().is_relative_to(root):
                raise PicoError(f"{path} is a link that leaves {folder}", mend="copy the documents into the folder")
            if name not in links and matches.fullmatch(relative):
                if not path.is_file():  # a pipe would be waited for, a device never end
                    raise PicoError(f"{path} is no plain file", mend="remove it, or narrow `glob`")
                found.append(relative)
    found = _included(source, sorted(found))
    if not found:
        raise PicoError(f"no file of {folder} matches glob {source.glob!r}", mend="put files there, or correct `glob`")
    return found


def _included(source: Source, names: Sequence[str]) -> list[str]:
    left_out = [wheels.glob_matcher(pattern) for pattern in source.exclude]
    return [name for name in names if not any(matcher.fullmatch(name) for matcher in left_out)]


def _files_pin(source: Source, folder: Path, names: Sequence[str]) -> str:
    """Returns the name of the contents: the sha256 of every file's name and sha256."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0{sha256_file(folder / name)}\n".encode())
    return f"{source.glob} ({len(names)} file{'s' if len(names) > 1 else ''}) sha256:{digest.hexdigest()}"


def _files(
    source: Source, folder: Path, names: Sequence[str], max_expansion: float, progress: Progress
) -> Iterator[tuple[IO[bytes], File]]:
    total, done = sum((folder / name).stat().st_size for name in names), 0
    for name in names:
        path = folder / name
        size = path.stat().st_size
        if not size:
            raise PicoError(f"{path} is empty", mend="fill it, remove it, or narrow `glob`")
        with open(path, "rb") as stream:
            yield stream, File(str(path), source.text_field, unpacked_limit(size, max_expansion), name)
        done += size
        progress(done / max(1, total))


def _write(path: Path, source: Source, texts: Iterator[str]) -> dict[str, int]:
    """Writes one row a document. Returns the numbers of documents, of bytes of text, and of empty ones dropped."""
    counts = {"documents": 0, "bytes": 0, "empty": 0}
    ids: list[str] = []
    kept: list[str] = []
    held = 0
    # Fixed options, so that equal documents give equal bytes.
    options: Any = {"compression": "zstd", "compression_level": 3, "use_dictionary": ["source", "domain"]}
    with full_disk_named(path), pq.ParquetWriter(path, SCHEMA, write_statistics=False, **options) as writer:

        def flush() -> None:
            columns = [ids, [source.name] * len(ids), [source.domain] * len(ids), kept]
            writer.write_table(pa.table([pa.array(column, pa.string()) for column in columns], schema=SCHEMA))

        for number, text in enumerate(texts):
            if not text or text.isspace():
                counts["empty"] += 1
                continue
            data = _utf8(text, number)
            if source.max_bytes is not None and counts["bytes"] + len(data) > source.max_bytes:
                break
            ids.append(hashlib.sha256(data).hexdigest())
            kept.append(text)
            counts["documents"] += 1
            counts["bytes"] += len(data)
            held += len(data)
            if held >= ROW_GROUP_BYTES:
                flush()
                ids, kept, held = [], [], 0
        if ids:
            flush()
    return counts


def _utf8(text: str, number: int) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair
        character = f"U+{ord(text[error.start]):04X}"
        raise PicoError(
            f"document {number} has {character} at character {error.start}: half a surrogate pair, which is no text",
            mend="correct the document in its file",
        ) from None


@contextmanager
def _named(source: Source) -> Iterator[None]:
    """Says in every PicoError from within which source it was."""
    try:
        yield
    except PicoError as error:
        raise type(error)(f"source {source.name!r}: {error.what}", where=error.where, mend=error.mend) from error
