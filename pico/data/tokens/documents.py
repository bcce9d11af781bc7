"""The use of each document: whether it is trained on, held out, or neither, and then why not.

Stage `prepare` writes `documents/<source>.parquet` below `data/tokens/`: one row for each document of
`data/documents/<source>.parquet`, in the same order and in row groups of the same sizes, with its `id` and its `use`,
the label of a `Use`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pico.errors import PicoError


class Use(IntEnum):
    """The closed list of uses. Tables and provenance.json hold its `label`."""

    TRAIN = 0
    """At least one row of the training shards holds a part of the document."""
    HELDOUT = 1
    """At least one of the held-out rows that are kept holds a part of it."""
    DUPLICATE = 2
    """It has the same text as an earlier document."""
    SAMPLED_OUT = 3
    """Its domain has more text than `packing.max_domain_bytes`."""
    SHORT = 4
    """It is shorter than `cleaning.min_document_bytes`, or blank."""
    LONG = 5
    """It is longer than `cleaning.max_document_bytes`."""
    CONTROL = 6
    """It has too many control and replacement characters."""
    LETTERS = 7
    """It has too few letters and digits."""
    LANGUAGE = 8
    """Its language is none of `cleaning.languages`."""
    CLEANED_DUPLICATE = 9
    """It has the same text as an earlier document, after cleaning."""
    NEAR_DUPLICATE = 10
    """It is a near-duplicate of an earlier document."""
    TAIL = 11
    """It is on the side of training, but lies whole in the tail that fills no row."""
    NOT_REPEATED = 12
    """It is on the side of training, but `packing.mixture` gives its domain less than one repetition, and it none."""
    BEYOND_HELDOUT_ROWS = 13
    """It is on the held-out side, but only in rows beyond `packing.heldout_rows`, or in their tail."""

    @property
    def label(self) -> str:
        """The name in lower case, as tables hold it."""
        return self.name.lower()


LABELS = pa.array([use.label for use in Use])
"""The labels of all uses, at the places that are their numbers."""

DROPPED = [use for use in Use if Use.SAMPLED_OUT < use < Use.TAIL]
"""The reasons for which cleaning and near-deduplication drop documents."""


@contextmanager
def parquet_named(path: Path, mend: str) -> Iterator[None]:
    """Turns what pyarrow raises on a missing or torn file into a PicoError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise PicoError(f"{path} cannot be read as Parquet: {error}", mend=mend) from error


def read_groups(path: Path, mend: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yields the row groups of a Parquet file."""
    with parquet_named(path, mend):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns)


def read_uses(tokens: Path, source: str, group: int) -> np.ndarray:
    """Returns the uses of the documents of one row group of a source: uint8 (documents,), numbers of `Use`.

    `tokens` is `data/tokens/`. Raises PicoError where the table is missing, torn, or names an unknown use.
    """
    path, mend = tokens / "documents" / f"{source}.parquet", "make the tokens again: dvc repro prepare"
    with parquet_named(path, mend):
        labels = pq.ParquetFile(path).read_row_group(group, columns=["use"])["use"]
    numbers = pc.index_in(labels, LABELS)
    if numbers.null_count:
        unknown = labels.filter(pc.is_null(numbers))[0].as_py()
        raise PicoError(f"{path} holds an unknown use, {unknown!r}", where=f"row group {group}", mend=mend)
    return numbers.to_numpy().astype(np.uint8)
