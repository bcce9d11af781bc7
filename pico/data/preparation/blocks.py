"""Blocks of documents, and the store of what is known of them: files by block, each written whole or not at all.

Documents are prepared in blocks: the row groups of the files that stage `fetch` left (16 MB of text each). Results of a
block lie in files named by its number; results for all documents in flat arrays on disk. Neither grows in memory with
the corpus, and a kill loses one block.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pico.errors import PicoError
from pico.files import full_disk_named, read_json
from pico.spread import release, release_memory, spread

SORT_MEMORY = "256MB"
"""The memory limit of a sort; the rest is spilled to the store."""
BATCH = 2**16
"""Rows of a sorted table that are held at a time."""

Progress = Callable[[float], None]
"""Receives the fraction done, in [0, 1]."""


@dataclass(frozen=True)
class Block:
    """A row group of documents."""

    number: int
    source: int
    """The place of its source in sources.json."""
    name: str
    """The name of its source."""
    domain: str
    path: Path
    group: int
    """The number of the row group in the file."""
    first: int
    """The number of its first document, counted over all blocks."""
    first_row: int
    """The number of its first document within its source."""
    rows: int

    @property
    def span(self) -> slice:
        """Its documents in an array over all of them."""
        return slice(self.first, self.first + self.rows)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Reads its documents. Raises PicoError naming the source where they cannot be read."""
        try:
            table = pq.ParquetFile(self.path).read_row_group(self.group, columns=list(columns))
            return table.select(list(columns))  # pyarrow passes over a column that is not there
        except (pa.ArrowException, OSError, KeyError) as error:
            raise _unreadable(self.name, self.path, error) from error


def _unreadable(source: str, path: Path, error: Exception) -> PicoError:
    return PicoError(f"the documents of source {source!r} cannot be read: {error}", where=str(path),
                     mend="run: dvc repro fetch")  # fmt: skip


def find_blocks(documents: Path) -> list[Block]:
    """Returns the blocks of `data/documents/`, in reading order: that of sources.json, then of the file."""
    blocks: list[Block] = []
    first = 0
    for source, entry in enumerate(read_json(documents / "sources.json")):
        path, first_row = documents / f"{entry['name']}.parquet", 0
        try:
            with pq.ParquetFile(path) as file:
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(entry["name"], path, error) from error
        for group, rows in enumerate(sizes):
            place = len(blocks), source, entry["name"], entry["domain"], path, group, first, first_row, rows
            blocks.append(Block(*place))
            first, first_row = first + rows, first_row + rows
    return blocks


def by_domain(blocks: Sequence[Block]) -> dict[str, list[Block]]:
    """Returns the blocks of each domain, in alphabetical order of these."""
    domains = sorted({block.domain for block in blocks})
    return {domain: [block for block in blocks if block.domain == domain] for domain in domains}


def block_numbers(blocks: Sequence[Block], documents: np.ndarray) -> np.ndarray:
    """Returns the number of the block that each document is in: int64."""
    return np.searchsorted([block.first for block in blocks], documents, side="right") - 1


@dataclass(frozen=True)
class Store:
    """The folder of everything that is kept between the steps of preparation."""

    folder: Path

    def file(self, kind: str, number: int, ending: str = ".parquet") -> Path:
        """Returns `<kind>/<number><ending>`."""
        return self.folder / kind / f"{number:06d}{ending}"

    def map(
        self,
        kind: str,
        function: Callable[..., Any],
        calls: Sequence[tuple],
        progress: Progress = lambda fraction: None,
        weights: Sequence[int] | None = None,
    ) -> None:
        """Calls `function(self, *call)` for every call whose file of `kind`, named by its number, is not there yet.

        The first item of a call has a `.number`, or is one. The function writes that file last. On Ray the calls are
        spread over its processes. `weights`: the share of each call in all work, in any unit.
        """
        (self.folder / kind).mkdir(exist_ok=True)
        shares = weights or [1] * len(calls)
        numbers = [getattr(call[0], "number", call[0]) for call in calls]
        done = {path.name.split(".")[0] for path in (self.folder / kind).iterdir() if not path.name.startswith(".")}
        pending = [index for index, number in enumerate(numbers) if f"{number:06d}" not in done]
        total, finished = max(1, sum(shares)), sum(shares) - sum(shares[index] for index in pending)
        for index, _ in spread(release, [(function, self, *calls[index]) for index in pending]):
            finished += shares[pending[index]]
            progress(finished / total)

    def map_blocks(
        self, kind: str, function: Callable[..., Any], blocks: Sequence[Block], progress: Progress, *arguments: Any
    ) -> None:
        """Calls `function(self, block, *arguments)` for every block whose file of `kind` is not there yet."""
        self.map(kind, function, [(block, *arguments) for block in blocks], progress, [block.rows for block in blocks])

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """Returns a folder that `make` fills, made whole or not at all; one that is there already is not made again."""
        target, partial = self.folder / name, self.folder / f".{name}.partial"
        if not target.exists():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            with full_disk_named(partial):
                make(partial)
            release_memory()
            os.replace(partial, target)
        return target

    def sorted(self, kind: str, columns: str, order: str, where: str = "true") -> Iterator[dict[str, np.ndarray]]:
        """Yields the rows of all files of `kind`, sorted on disk, in batches; `columns`, `order`, `where` are SQL.

        The order must leave no ties, or the result would depend on the number of threads.
        """
        files = sorted(str(path) for path in (self.folder / kind).glob("*.parquet") if not path.name.startswith("."))
        if not files:
            return
        spill = self.folder / "spill"
        with duckdb.connect() as database:
            database.execute(f"SET memory_limit = '{SORT_MEMORY}'")
            database.execute("SET temp_directory = ?", [str(spill)])
            for setting in ("autoinstall_known_extensions", "autoload_known_extensions"):
                database.execute(f"SET {setting} = false")
            query = f"SELECT {columns} FROM read_parquet(?) WHERE {where} ORDER BY {order}"
            for batch in database.sql(query, params=[files]).to_arrow_reader(BATCH):
                yield {name: batch.column(name).to_numpy(zero_copy_only=False) for name in batch.schema.names}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process from using the store; the kernel frees the lock however the first one ends."""
        with open(self.folder / "lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                where = str(self.folder)
                raise PicoError("another process prepares the same data", where=where, mend="wait for it") from None
            yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a hidden neighbour to write to, which then becomes `path`: a file is there whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with full_disk_named(path):
        yield partial
        os.replace(partial, path)


def write_table(path: Path, table: pa.Table, **options: Any) -> None:
    """Writes a Parquet file, whole or not at all."""
    with replacing(path) as partial:
        pq.write_table(table, partial, **({"compression": "lz4"} | options))


def write_bytes(path: Path, data: bytes | np.ndarray) -> None:
    """Writes a file, whole or not at all."""
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(data.data if isinstance(data, np.ndarray) else data)


def new_array(path: Path, kind: type, blocks: Sequence[Block]) -> np.memmap:
    """Makes an array on disk with an entry a document, all zero."""
    count = blocks[-1].span.stop if blocks else 0
    return np.memmap(path, kind, "w+", shape=(max(1, count),))


def block_uses(path: Path, block: Block) -> np.ndarray:
    """Returns the uses of a block's documents, as far as they are decided: uint8, numbers of `Use`."""
    return np.fromfile(path, np.uint8, block.rows, offset=block.first)


def as_integers(ids: Sequence[str]) -> np.ndarray:
    """Returns hashes in hex as four uint64 each, most significant first: (n, 4)."""
    return np.frombuffer(bytes.fromhex("".join(ids)), ">u8").reshape(-1, 4).astype(np.uint64)


def halves(ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first and the last eight bytes of hashes in hex: two uint64 arrays."""
    integers = as_integers(ids)
    return integers[:, 0].copy(), integers[:, 3].copy()
