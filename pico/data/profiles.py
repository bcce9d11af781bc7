"""What the gates look at: small tables of statistics of documents, rows, domains and files, never whole texts.

Every frame names its rows (`source`, `row`; `file`, `row`; `domain`), so that a gate can say where it failed.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pico.data.heldout import target_bytes
from pico.data.tokenizer import load_tokenizer, token_bytes, tokenizer_meta
from pico.errors import PicoError
from pico.files import read_json

CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x{9f}\x{fffd}]"
"""Control characters other than tab, line feed and carriage return; and the replacement character (RE2 syntax)."""


def file_frame(paths: list[Path], root: Path) -> pd.DataFrame:
    """One row a Parquet file: `file`, and `columns` with their types, for instance `id: string, text: string`."""
    rows = []
    for path in paths:
        try:
            schema = pq.read_schema(path)
            columns = ", ".join(f"{entry.name}: {_type_name(entry.type)}" for entry in schema)
        except (pa.ArrowException, OSError) as error:
            columns = f"unreadable: {type(error).__name__}"
        rows.append({"file": path.relative_to(root).as_posix(), "columns": columns})
    return pd.DataFrame(rows, columns=["file", "columns"])


def document_frame(documents: Path) -> pd.DataFrame:
    """One row a document, in reading order, duplicates in.

    `source`, `row`, `id`, `domain`, `bytes` (UTF-8), `control` (fraction of characters), `id_is_hash` (bool).
    """
    frames = []
    for entry in read_json(documents / "sources.json"):
        start = 0
        for table in _tables(documents / f"{entry['name']}.parquet", ["id", "source", "domain", "text"]):
            text = table["text"]
            characters = pc.utf8_length(text).to_numpy()
            control = pc.count_substring_regex(text, CONTROL).to_numpy()
            ids = table["id"].to_pylist()
            hashes = [value and hashlib.sha256(value.encode()).hexdigest() for value in text.to_pylist()]
            frames.append(
                pd.DataFrame(
                    {
                        "source": table["source"].to_pandas(),
                        "row": np.arange(start, start + table.num_rows),
                        "id": ids,
                        "domain": table["domain"].to_pandas(),
                        "bytes": pc.binary_length(text).to_pandas(),
                        "control": control / np.maximum(characters, 1),
                        "id_is_hash": [identity == expected for identity, expected in zip(ids, hashes, strict=True)],
                    }
                )
            )
            start += table.num_rows
    return pd.concat(frames, ignore_index=True)


def row_frame(tokens: Path) -> pd.DataFrame:
    """One row a row of the shards and held-out files, in order of file names.

    `file`, `row`, `split` (train or heldout), `domain` (empty for train), `length`, `lowest` and `highest` (ids; -1 in
    a row of none), `eos` and `empty_documents` (counts; an empty document is two EOS in a row). For held-out rows also
    `bytes_off` (`n_bytes` less the bytes of the targets), `in_training` (the exact row is a training row too) and
    `documents_in_training` (whole documents within the row that are whole within a training row too).
    """
    eos = tokenizer_meta(tokens / "tokenizer")["eos_id"]
    sizes = token_bytes(load_tokenizer(tokens / "tokenizer"))
    heldout, known_rows, known_documents = _heldout(tokens, eos, sizes)
    frames = []
    for path in sorted((tokens / "train").glob("*.parquet")):
        start = 0
        for table in _tables(path, ["input_ids"]):
            profile, values, ends = _profile(table["input_ids"], eos)
            profile.insert(0, "row", np.arange(start, start + table.num_rows))
            profile.insert(0, "file", f"train/{path.name}")
            start += table.num_rows
            frames.append(profile)
            if known_rows:
                for row in np.split(values, ends[:-1]):
                    for index in known_rows.get(row.tobytes(), ()):
                        heldout.loc[index, "in_training"] = True
            for _, document in _whole_documents(values, ends, eos):
                for index in known_documents.pop(document, ()):
                    heldout.loc[index, "documents_in_training"] += 1
    train = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["file", "row"])
    train["split"], train["domain"] = "train", ""
    train["bytes_off"], train["in_training"], train["documents_in_training"] = 0, True, 0
    return pd.concat([train, heldout], ignore_index=True)


def domain_frame(documents: pd.DataFrame, rows: pd.DataFrame, provenance: dict[str, Any]) -> pd.DataFrame:
    """One row a domain: `domain`, `mean_bytes` of its documents, `train_fraction` of tokens, `heldout_rows`."""
    accounts = provenance["domains"]
    total = sum(account["train_tokens"] for account in accounts.values())
    means = documents.groupby("domain")["bytes"].mean()
    heldout = rows[rows["split"] == "heldout"].groupby("domain").size()
    return pd.DataFrame(
        [
            {
                "domain": domain,
                "mean_bytes": float(means.get(domain, 0.0)),
                "train_fraction": accounts.get(domain, {}).get("train_tokens", 0) / max(total, 1),
                "heldout_rows": int(heldout.get(domain, 0)),
            }
            for domain in sorted(set(accounts) | set(means.index))
        ]
    )


def corpus_frame(documents: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """One row: `distinct_documents`, `train_rows`, `train_eos` (EOS ids in them)."""
    train = rows[rows["split"] == "train"]
    return pd.DataFrame(
        [
            {
                "distinct_documents": int(documents["id"].nunique()),
                "train_rows": len(train),
                "train_eos": int(train["eos"].sum()) if len(train) else 0,
            }
        ]
    )


def _heldout(
    tokens: Path, eos: int, sizes: np.ndarray
) -> tuple[pd.DataFrame, dict[bytes, list[int]], dict[bytes, list[int]]]:
    """The frame of the held-out rows; and their rows and whole documents as bytes -> rows of that frame."""
    frames, known_rows, known_documents, done = [], {}, {}, 0  # type: ignore[var-annotated]
    for path in sorted((tokens / "heldout").glob("*.parquet")):
        table = pq.read_table(path, columns=["input_ids", "n_bytes"])
        profile, values, ends = _profile(table["input_ids"], eos)
        profile.insert(0, "row", np.arange(table.num_rows))
        profile.insert(0, "file", f"heldout/{path.name}")
        profile["split"], profile["domain"] = "heldout", path.stem
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
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["file", "row", "domain"])
    frame["in_training"], frame["documents_in_training"] = False, 0
    return frame, known_rows, known_documents


def _profile(column: pa.ChunkedArray, eos: int) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Statistics of lists of ids, all ids one after another (int32), and where each list ends."""
    lists = column.combine_chunks()
    lengths = pc.fill_null(lists.value_lengths(), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = lists.flatten().to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    filled = lengths > 0
    lowest, highest = np.full(len(lengths), -1), np.full(len(lengths), -1)
    if filled.any():
        lowest[filled] = np.minimum.reduceat(values, starts[filled])
        highest[filled] = np.maximum.reduceat(values, starts[filled])
    places = np.flatnonzero(values == eos)
    owner = np.searchsorted(ends, places, side="right")
    twice = (np.diff(places) == 1) & (owner[1:] == owner[:-1])
    count = len(lengths)
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


def _tables(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    """The row groups of a Parquet file, one after another."""
    try:
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise PicoError(f"{path} cannot be read as Parquet: {error}", mend="make it again: dvc repro") from error


def _type_name(kind: pa.DataType) -> str:
    """`list<int32>` whatever the elements are called."""
    return f"list<{kind.value_type}>" if pa.types.is_list(kind) else str(kind)
