"""Lookup of the training data: the rows of a step's batch with their documents, and the steps that saw a string."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pico.data.tokens.loader import MEND, TokenRows, batch_indices
from pico.data.tokens.tokenizer import TokenBytes, load_tokenizer, spelled, tokenizer_meta
from pico.errors import PicoError
from pico.files import read_json, sha256_file

AT_ONCE = 256
"""Rows that are searched at a time."""
BREAK = 0xFF
"""Stands between documents in the bytes that are searched; never part of UTF-8."""


@dataclass(frozen=True)
class Course:
    """The batches of a run: the arguments of `pico.data.tokens.loader.batch_indices`, and the number of steps."""

    steps: int
    batch_size: int
    seed: int

    def rows(self, step: int, n_rows: int) -> np.ndarray:
        """Returns the rows whose gradient made step `step` (from 1) out of the step before: int64, (batch_size,)."""
        if not 1 <= step <= self.steps:
            raise PicoError(f"there is no step {step}: the run has the steps 1 to {self.steps}", mend="name another")
        return batch_indices(step - 1, self.batch_size, n_rows, self.seed)

    def steps_of(self, rows: np.ndarray, n_rows: int) -> dict[int, list[int]]:
        """Returns the steps at which each of the rows was seen, ascending; none for a row that the run never saw."""
        found: dict[int, list[int]] = {int(row): [] for row in rows}
        wanted = np.fromiter(found, np.int64, len(found))
        for step in range(1, self.steps + 1):
            here = self.rows(step, n_rows)
            if (step - 1) * self.batch_size + len(here) <= n_rows:  # within the first epoch, which is in order
                own = wanted[(wanted >= here[0]) & (wanted <= here[-1])]
            else:
                own = here[np.isin(here, wanted)]
            for row in own.tolist():
                found[row].append(step)
        return found


def course_of_run(run: Path, tokens: Path) -> Course:
    """Returns the course of a run, a folder below data/models, from its last checkpoint.

    Raises PicoError where it has no checkpoint, or was trained on other tokens than these.
    """
    folders = sorted((run / "checkpoints").glob("step_*"))
    if not folders:
        raise PicoError(f"{run} holds no checkpoint", mend="name a model of the suite, or the folder of a run")
    identity = read_json(folders[-1] / "trainer.json")["identity"]
    if identity["data"].get("provenance.json") != sha256_file(tokens / "provenance.json"):
        raise PicoError(
            f"{run} was trained on other tokens than those in {tokens}",
            mend="check out the tokens of its commit with: git checkout COMMIT dvc.lock && dvc checkout data/tokens",
        )
    settings = identity["settings"]
    return Course(settings["training"]["steps"], settings["training"]["batch_size"], settings["seed"])


def show_step(tokens: Path, course: Course, step: int) -> list[dict[str, Any]]:
    """Returns the batch of a step, row by row in its order: `row`, `ids`, and `segments`.

    A segment: `document` (id), `source`, `domain`, `document_row` (in data/documents/<source>.parquet), `offset` (in
    the ids of the document), `position` (in the row), `length`, `ends` (whether its EOS is the last id), and `text`, in
    which a character that the row cuts in two is a replacement character, and EOS stands where a document ends within:
    in a row that came as ids, which is one segment.
    """
    rows = TokenRows(tokens / "train")
    indices = course.rows(step, rows.n_rows)
    pieces, eos = _pieces(tokens)
    mark = tokenizer_meta(tokens / "tokenizer")["eos_token"]
    provenance = _Provenance(tokens)
    shown = []
    for row, ids in zip(indices.tolist(), rows.rows(indices), strict=True):
        segments = provenance.of_row(row)
        for segment in segments:
            own = ids[segment["position"] : segment["position"] + segment["length"]]
            segment["text"] = spelled(own, pieces, eos, mark)
            segment["ends"] = bool(len(own) and own[-1] == eos)
        shown.append({"row": row, "ids": ids.tolist(), "segments": segments})
    return shown


def find_text(
    tokens: Path, course: Course, text: str, *, limit: int, progress: Callable[[float], None] = lambda fraction: None
) -> list[dict[str, Any]]:
    """Finds a string in the training rows. Returns `row`, `steps`, and the segment's document as `show_step` gives it.

    The bytes that the ids stand for are searched, so the string is found however it was cut into tokens; not where a
    row or a document ends within it. At most `limit` rows are given, the earliest.
    """
    wanted = text.encode()
    if not wanted:
        raise PicoError("there is nothing to look for", mend="give some text")
    rows = TokenRows(tokens / "train")
    pieces, eos = _pieces(tokens)
    hits: list[tuple[int, int]] = []
    for first in range(0, rows.n_rows, AT_ONCE):
        ids = rows.rows(np.arange(first, min(first + AT_ONCE, rows.n_rows)))
        progress((first + len(ids)) / rows.n_rows)
        hits += [(first + row, place) for row, place in _hits(ids, pieces, eos, wanted)]
        if len({row for row, _ in hits}) >= limit:
            break
    steps = course.steps_of(np.array([row for row, _ in hits], np.int64), rows.n_rows)
    provenance = _Provenance(tokens)
    found = []
    for row, place in hits:
        segment = next(entry for entry in provenance.of_row(row) if 0 <= place - entry["position"] < entry["length"])
        found.append({"row": row, "place": place, "steps": steps[row], **segment})
        if len({entry["row"] for entry in found}) == limit:
            break
    return found


def _hits(ids: np.ndarray, pieces: TokenBytes, eos: int, wanted: bytes) -> Iterator[tuple[int, int]]:
    """Yields (row, place of the id in it) of every occurrence in some rows."""
    sizes = np.where(ids == eos, 1, pieces.sizes[ids])
    sizes = np.concatenate([sizes, np.ones((len(ids), 1), np.int64)], axis=1)  # a break after each row
    ends = np.cumsum(sizes)
    data = np.full(int(ends[-1]), BREAK, np.uint8)
    filled = np.ones(len(data), bool)
    breaks = np.concatenate([ids == eos, np.ones((len(ids), 1), bool)], axis=1).reshape(-1)
    filled[ends[breaks] - 1] = False
    data[filled] = pieces.text(ids.reshape(-1))
    plain, width = data.tobytes(), ids.shape[1] + 1
    place = plain.find(wanted)
    while place >= 0:
        token = int(np.searchsorted(ends, place, side="right"))
        yield token // width, token % width
        place = plain.find(wanted, place + 1)


class _Provenance:
    """Reads the sidecar of the training rows, one row at a time."""

    def __init__(self, tokens: Path) -> None:
        self._paths = sorted((tokens / "train-provenance").glob("*.parquet"))
        if not self._paths:
            raise PicoError(f"{tokens} does not tell which documents its rows came from", mend=MEND)
        footers = [pq.read_metadata(path) for path in self._paths]
        self._last_rows = [own.row_group(own.num_row_groups - 1).column(0).statistics.max for own in footers]

    def of_row(self, row: int) -> list[dict[str, Any]]:
        """Returns the segments of a row, in its order."""
        path = self._paths[int(np.searchsorted(self._last_rows, row))]
        table = pq.read_table(path, filters=[("row", "==", row)])
        return [{key: value for key, value in entry.items() if key != "row"} for entry in table.to_pylist()]


def _pieces(tokens: Path) -> tuple[TokenBytes, int]:
    return TokenBytes(load_tokenizer(tokens / "tokenizer")), tokenizer_meta(tokens / "tokenizer")["eos_id"]
