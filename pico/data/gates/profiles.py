"""Measures of files, documents and token rows: the columns that gates are about, and what the data page shows.

Every table names its rows (`source`, `row`; `file`, `row`), so that a gate can say where it failed.
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pico.data.tokens.documents import LABELS, Use, read_groups
from pico.data.tokens.tokenizer import load_tokenizer, target_bytes, token_bytes, tokenizer_meta

CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x{9f}\x{fffd}]"
"""Control characters other than tab, line feed and carriage return; and the replacement character (RE2 syntax)."""
CLASSES = {
    "letters": r"\p{L}",
    "digits": r"\p{N}",
    "white space": r"\s",
    "punctuation and symbols": r"[\p{P}\p{S}]",
    "control": CONTROL,
}
"""The classes of the character profile; RE2 syntax."""
COUNTED = 2**18
"""Characters whose classes are held at a time."""
ROW_COLUMNS = ["file", "row", "length", "lowest", "highest", "eos", "empty_documents"]
"""The measures of a row of ids: `lowest` and `highest` are ids, -1 in a row of none; an empty document is two EOS in a
row."""
BINS_PER_OCTAVE = 4
LENGTH_BINS = 40 * BINS_PER_OCTAVE
"""Bins of document lengths, a quarter of an octave wide from 1 byte on."""


def file_frame(paths: list[Path], root: Path) -> pd.DataFrame:
    """Returns one row a Parquet file: `file`, and `columns` with their types, such as `id: string, text: string`."""
    rows = []
    for path in paths:
        try:
            schema = pq.read_schema(path)
            columns = ", ".join(f"{entry.name}: {_type_name(entry.type)}" for entry in schema)
        except (pa.ArrowException, OSError) as error:
            columns = f"unreadable: {type(error).__name__}"
        rows.append({"file": path.relative_to(root).as_posix(), "columns": columns})
    return pd.DataFrame(rows, columns=["file", "columns"])


def measure_documents(table: pa.Table, first: int, uses: np.ndarray) -> pd.DataFrame:
    """Returns one row a document of a row group that begins at row `first` of its file.

    `source`, `row`, `id`, `domain`, `use`, `text_bytes` (UTF-8), `id_is_hash` (bool); and of those that are used
    `bytes` and `control` (fraction of characters), which are NaN for the rest.
    """
    text = table["text"]
    ids = table["id"].to_pylist()
    if "hash" in table.column_names:  # rows of ids, of which not the text is hashed
        hashes = table["hash"].to_pylist()
    else:
        hashes = [value and hashlib.sha256(value.encode()).hexdigest() for value in text.to_pylist()]
    used = (uses == Use.TRAIN) | (uses == Use.HELDOUT)
    sizes = pc.binary_length(text).to_pandas().astype("float64")
    control = pc.count_substring_regex(text, CONTROL).to_pandas().astype("float64")
    characters = pc.utf8_length(text).to_pandas().astype("float64")
    return pd.DataFrame(
        {
            "source": table["source"].to_pandas(),
            "row": np.arange(first, first + table.num_rows),
            "id": ids,
            "domain": table["domain"].to_pandas(),
            "use": LABELS.take(pa.array(uses)).to_pandas(),
            "text_bytes": sizes,
            "bytes": sizes.where(used),
            "control": (control / characters.clip(lower=1)).where(used),
            "id_is_hash": [identity == expected for identity, expected in zip(ids, hashes, strict=True)],
        }
    )


def length_histogram(sizes: np.ndarray) -> np.ndarray:
    """Returns the documents in each of LENGTH_BINS bins of log-length: int64."""
    places = np.floor(BINS_PER_OCTAVE * np.log2(np.maximum(sizes, 1))).astype(np.int64)
    return np.bincount(np.minimum(places, LENGTH_BINS - 1), minlength=LENGTH_BINS)


def character_counts(texts: pa.ChunkedArray) -> np.ndarray:
    """Returns the characters of each of CLASSES, and all of them last: int64 (classes + 1,)."""
    kinds = _kinds()
    found = np.zeros(2 ** len(CLASSES), np.int64)
    for text in texts:
        own = text.as_py() or ""
        for first in range(0, len(own), COUNTED):
            codes = np.frombuffer(own[first : first + COUNTED].encode("utf-32-le"), np.uint32)
            found += np.bincount(kinds[codes], minlength=len(found))
    of_class = [found[np.arange(len(found)) >> number & 1 == 1].sum() for number in range(len(CLASSES))]
    return np.array([*of_class, found.sum()], np.int64)


@lru_cache(maxsize=1)
def _kinds() -> np.ndarray:
    """Returns the CLASSES of every code point, as bits: uint8 (0x110000,). The patterns are asked once."""
    kinds = np.zeros(sys.maxunicode + 1, np.uint8)
    for first in range(0, len(kinds), 2**11):
        if 0xD800 <= first < 0xE000:  # surrogates, which are no characters
            continue
        characters = pa.array([chr(code) for code in range(first, first + 2**11)], pa.string())
        for number, pattern in enumerate(CLASSES.values()):
            matches = pc.match_substring_regex(characters, pattern).to_numpy(zero_copy_only=False)
            kinds[first : first + 2**11][matches] |= 1 << number
    return kinds


@dataclass(frozen=True)
class Shard:
    """The measures of one shard of training rows."""

    table: pd.DataFrame
    """One row a row: ROW_COLUMNS."""
    known_rows: frozenset[bytes]
    """Held-out rows that are here too."""
    known_documents: frozenset[bytes]
    """Whole documents of held-out rows that are here too."""


@dataclass(frozen=True)
class Heldout:
    """The held-out rows, and what they hold, by content."""

    table: pd.DataFrame
    rows: dict[bytes, list[int]]
    """The ids of a row as bytes -> rows of the table."""
    documents: dict[bytes, list[int]]
    """The same of every whole document in a row."""


def measure_shard(path: Path, file: str, eos: int, rows: frozenset[bytes], documents: frozenset[bytes]) -> Shard:
    """Measures one shard. rows, documents: those held out, which should not be in it."""
    parts: list[pd.DataFrame] = []
    known_rows: set[bytes] = set()
    known_documents: set[bytes] = set()
    for table in read_groups(path, "make it again: dvc repro", ["input_ids"]):
        profile, values, ends = _profile(table["input_ids"], eos)
        parts.append(profile)
        known_rows.update(own for row in np.split(values, ends[:-1]) if (own := row.tobytes()) in rows)
        known_documents.update(own for _, own in _whole_documents(values, ends, eos) if own in documents)
    measures = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    measures.insert(0, "row", np.arange(len(measures)))
    measures.insert(0, "file", file)
    return Shard(measures, frozenset(known_rows), frozenset(known_documents))


def measure_heldout_rows(tokens: Path) -> Heldout:
    """Measures the held-out files, which are few and small.

    The table: ROW_COLUMNS, `domain`, `bytes_off` (`n_bytes` less the bytes of the targets), and for `mark_seen`
    `in_training` (false) and `documents_in_training` (0).
    """
    eos = tokenizer_meta(tokens / "tokenizer")["eos_id"]
    sizes = token_bytes(load_tokenizer(tokens / "tokenizer"))
    frames, done = [], 0
    known_rows: dict[bytes, list[int]] = {}
    known_documents: dict[bytes, list[int]] = {}
    for path in sorted((tokens / "heldout").glob("*.parquet")):
        table = pq.read_table(path, columns=["input_ids", "n_bytes"])
        profile, values, ends = _profile(table["input_ids"], eos)
        profile.insert(0, "row", np.arange(table.num_rows))
        profile.insert(0, "file", f"heldout/{path.name}")
        profile["domain"] = path.stem
        rows = np.split(values, ends[:-1]) if len(ends) else []
        safe = [np.clip(row, 0, len(sizes) - 1)[None, :] for row in rows]  # ids out of range have their own gate
        expected = np.array([int(target_bytes(row, sizes)[0]) for row in safe], np.int64)
        profile["bytes_off"] = table["n_bytes"].to_numpy() - expected
        for number, row in enumerate(rows):
            known_rows.setdefault(row.tobytes(), []).append(done + number)
        for number, document in _whole_documents(values, ends, eos):
            known_documents.setdefault(document, []).append(done + number)
        frames.append(profile)
        done += len(rows)
    columns = [*ROW_COLUMNS, "domain", "bytes_off"]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
    frame["in_training"], frame["documents_in_training"] = False, 0
    return Heldout(frame, known_rows, known_documents)


def mark_seen(heldout: Heldout, found: Sequence[Shard]) -> pd.DataFrame:
    """Returns the table, with `in_training` and `documents_in_training` as the shards were found to hold them."""
    table = heldout.table.copy()
    for own in set().union(*(part.known_rows for part in found)):
        table.loc[heldout.rows[own], "in_training"] = True
    for own in set().union(*(part.known_documents for part in found)):
        for row in heldout.documents[own]:
            table.loc[row, "documents_in_training"] += 1
    return table


def _profile(column: pa.ChunkedArray, eos: int) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Statistics of lists of ids, all ids one after another (int32), and where each list ends."""
    lists = column.combine_chunks()
    lengths = pc.fill_null(lists.value_lengths(), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = lists.flatten().to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    filled = lengths > 0
    count = len(lengths)
    lowest, highest = np.full(count, -1), np.full(count, -1)
    if filled.any():
        lowest[filled] = np.minimum.reduceat(values, starts[filled])
        highest[filled] = np.maximum.reduceat(values, starts[filled])
    places = np.flatnonzero(values == eos)
    owner = np.searchsorted(ends, places, side="right")
    twice = (np.diff(places) == 1) & (owner[1:] == owner[:-1])
    frame = pd.DataFrame(
        {
            "length": lengths,
            "lowest": lowest,
            "highest": highest,
            "eos": np.bincount(owner, minlength=count),
            "empty_documents": np.bincount(owner[1:][twice], minlength=count),
        }
    )
    return frame, values.astype(np.int32), ends


def _whole_documents(values: np.ndarray, ends: np.ndarray, eos: int) -> Iterator[tuple[int, bytes]]:
    """(list number, ids as bytes) of every run of ids between two EOS of one list."""
    places = np.flatnonzero(values == eos)
    owner = np.searchsorted(ends, places, side="right")
    inside = np.flatnonzero((owner[1:] == owner[:-1]) & (np.diff(places) > 1))
    for left, right, number in zip(places[inside], places[inside + 1], owner[inside], strict=True):
        yield int(number), values[left + 1 : right].tobytes()


def _type_name(kind: pa.DataType) -> str:
    # `list<int32>` whatever the elements are called
    return f"list<{kind.value_type}>" if pa.types.is_list(kind) else str(kind)
