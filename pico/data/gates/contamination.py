"""Contamination: the examples of benchmarks that share a run of words with a document that is trained on.

As for GPT-3 (Brown et al. 2020, appendix C): an example counts as contaminated when any run of 13 of its words (see
`ngrams.py`) is in a training document. Two things are stricter here: runs that many documents share are not let
off, and a text of 8 to 12 words is looked for as a whole, where theirs is passed over. Every text of an example is
looked at by itself, whatever its column: question, choices, passage.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pico.data.gates.ngrams import Index, normalized_words, whole
from pico.data.tokens.documents import read_groups
from pico.errors import PicoError

MEND = "run: dvc repro fetch_benchmarks"
SHOWN = 100
"""Characters of an example's text that are shown."""


@dataclass(frozen=True)
class Benchmarks:
    """The runs of words of all examples of all benchmarks."""

    names: list[str]
    """`task/split`, sorted."""
    sizes: list[int]
    """Examples of each."""
    hashes: np.ndarray
    """uint64 (runs,)"""
    texts: np.ndarray
    """The text that each run lies in: int64 (runs,)."""
    examples: np.ndarray
    """(benchmark, example) of each text: int64 (texts, 2)."""
    starts: list[str]
    """The first characters of each text."""

    def table(self, index: Index, seen: np.ndarray) -> pd.DataFrame:
        """Returns one row a benchmark: `benchmark`, `examples`, `checked` (long enough to be looked for),
        `contaminated`, `fraction` of the examples. seen: True for the hashes of `index` that training documents hold.
        """
        owners = self.examples[self.texts]
        hit = owners[seen[np.searchsorted(index.hashes, self.hashes)]] if len(self.hashes) else owners
        rows = []
        for number, (name, size) in enumerate(zip(self.names, self.sizes, strict=True)):
            found = len(np.unique(hit[hit[:, 0] == number, 1]))
            checked = len(np.unique(owners[owners[:, 0] == number, 1]))
            rows.append({"benchmark": name, "examples": size, "checked": checked, "contaminated": found,
                         "fraction": found / size})  # fmt: skip
        return pd.DataFrame(rows, columns=["benchmark", "examples", "checked", "contaminated", "fraction"])

    def found(self, index: Index, documents: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns one entry a contaminated example: `benchmark`, `example`, and the first document with a run of it.

        `documents`: the place in `index` of each hash that was seen, and the document it was first seen in.
        """
        if not len(self.hashes):
            return []
        places = np.searchsorted(index.hashes, self.hashes)
        known: dict[tuple[int, int], dict[str, Any]] = {}
        for run in np.flatnonzero(np.isin(places, np.fromiter(documents, np.int64, len(documents)))):
            text = int(self.texts[run])
            benchmark, example = self.examples[text].tolist()
            known.setdefault(
                (benchmark, example),
                {"benchmark": self.names[benchmark], "example": example, **documents[int(places[run])],
                 "text": self.starts[text]},
            )  # fmt: skip
        return [known[key] for key in sorted(known)]


def read_benchmarks(folder: Path, n: int) -> Benchmarks:
    """Reads the runs of `n` words of everything below `data/benchmarks/`. Raises PicoError where there is none."""
    paths = sorted(folder.glob("*/*.parquet"))
    if not paths:
        raise PicoError(f"{folder} holds no benchmarks", mend=MEND)
    names, sizes, examples, starts, hashes, texts = [], [], [], [], [], []  # type: ignore[var-annotated]
    for number, path in enumerate(paths):
        names.append(f"{path.parent.name}/{path.stem}")
        example = 0
        for table in read_groups(path, MEND):
            own = [(example + row, text) for row, values in enumerate(table.to_pylist()) for text in strings(values)]
            example += table.num_rows
            words = normalized_words(pa.array([text for _, text in own], pa.string()))
            for found, own_texts in (*((h, o) for _, h, o in words.runs([n])), whole(words, n)):
                hashes.append(found)
                texts.append(own_texts + len(starts))
            examples += [(number, row) for row, _ in own]
            starts += [text[:SHOWN] for _, text in own]
        sizes.append(example)
    runs = np.concatenate([np.zeros(0, np.uint64), *hashes])
    owners = np.concatenate([np.zeros(0, np.int64), *texts])
    return Benchmarks(names, sizes, runs, owners, np.array(examples, np.int64).reshape(-1, 2), starts)


def examples_of(folder: Path) -> Iterator[pa.Table]:
    """Yields one row an example of everything below `data/benchmarks/`, for the user's own suites: `benchmark`
    (`task/split`), `example`, `texts` (their number), `bytes` and `text` (all texts, a line each)."""
    for path in sorted(folder.glob("*/*.parquet")):
        first = 0
        for table in read_groups(path, MEND):
            texts = [list(strings(values)) for values in table.to_pylist()]
            columns = {
                "benchmark": [f"{path.parent.name}/{path.stem}"] * len(texts),
                "example": list(range(first, first + len(texts))),
                "texts": list(map(len, texts)),
                "bytes": [sum(len(text.encode()) for text in own) for own in texts],
                "text": ["\n".join(own) for own in texts],
            }
            first += len(texts)
            yield pa.table(columns)


def strings(value: Any) -> Iterator[str]:
    """Yields every text in a nested value, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)
