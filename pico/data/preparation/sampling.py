"""Which documents are worked on at all: the first of each text, and of large domains a random sample."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pico.data.preparation.work import Block, Progress, Work, write_table
from pico.data.tokens.documents import Use


def survey(work: Work, blocks: Sequence[Block], max_domain_bytes: int | None, progress: Progress) -> Path:
    """Gives the file of uses (`Use` as uint8, one a document, in reading order): TRAIN, DUPLICATE or SAMPLED_OUT.

    Of documents with the same text the first is kept. Of a domain with more than `max_domain_bytes` of text a random
    sample of documents is kept, in the order of their hashes' last digits: the first digits decide what is held out, so
    that the two choices are independent.
    """
    domains = {domain: number for number, domain in enumerate(sorted({block.domain for block in blocks}))}
    calls = [(block, domains[block.domain]) for block in blocks]
    work.each("index", index_block, calls, progress, [block.rows for block in blocks])
    return choose(work, blocks, max_domain_bytes)


def choose(work: Work, blocks: Sequence[Block], max_domain_bytes: int | None) -> Path:
    """The choice of `survey`, from the index of all blocks."""
    domains = sorted({block.domain for block in blocks})

    def mark(folder: Path) -> None:
        uses = new_array(folder / "uses", np.uint8, blocks)
        last = None
        for batch in work.sorted("index", "doc, hi, lo", "hi, lo, doc"):
            repeated, last = repeats(batch, ("hi", "lo"), last)
            uses[batch["doc"][repeated]] = Use.DUPLICATE
        if max_domain_bytes is not None:
            totals = np.zeros(len(domains), np.int64)
            for batch in work.sorted("index", "domain, doc, n_bytes", "domain, lo, hi, doc"):
                distinct = uses[batch["doc"]] != Use.DUPLICATE
                for domain in np.unique(batch["domain"]):
                    here = distinct & (batch["domain"] == domain)
                    running = totals[domain] + np.cumsum(batch["n_bytes"][here])
                    uses[batch["doc"][here][running > max_domain_bytes]] = Use.SAMPLED_OUT
                    totals[domain] = running[-1] if len(running) else totals[domain]
        uses.flush()

    return work.once("chosen", mark) / "uses"


def index_block(work: Work, block: Block, domain: int) -> None:
    """Writes what sorting needs to know of the documents of a block: `doc`, `domain`, `hi`, `lo`, `n_bytes`.

    `hi` and `lo` are the first and the last eight bytes of the hash.
    """
    table = block.read(["id", "text"])
    hi, lo = halves(table["id"].to_pylist())
    columns = {
        "doc": np.arange(block.first, block.first + block.rows),
        "domain": np.full(block.rows, domain, np.int32),
        "hi": hi,
        "lo": lo,
        "n_bytes": pc.binary_length(table["text"]).to_numpy().astype(np.int64),
    }
    write_table(work.file("index", block.number), pa.table(columns))


def halves(ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The first and last eight bytes of hashes in hex, as uint64."""
    words = words_of(ids)
    return words[:, 0].copy(), words[:, 3].copy()


def words_of(ids: Sequence[str]) -> np.ndarray:
    """Hashes in hex as four uint64 each, most significant first: (n, 4)."""
    return np.frombuffer(bytes.fromhex("".join(ids)), ">u8").reshape(-1, 4).astype(np.uint64)


def repeats(
    batch: dict[str, np.ndarray], keys: Sequence[str], last: tuple | None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Which rows of a sorted batch have the keys of the row before (`last`: before the batch); and the last keys."""
    same = np.ones(len(batch[keys[0]]), bool)
    same[0] = last is not None and all(batch[key][0] == value for key, value in zip(keys, last, strict=True))
    for key in keys:
        same[1:] &= batch[key][1:] == batch[key][:-1]
    return same, tuple(batch[key][-1] for key in keys)


def new_array(path: Path, kind: type, blocks: Sequence[Block]) -> np.memmap:
    """An array on disk with an entry a document, all zero."""
    return np.memmap(path, kind, "w+", shape=(max(1, documents_of(blocks)),))


def documents_of(blocks: Sequence[Block]) -> int:
    """How many documents there are."""
    return blocks[-1].first + blocks[-1].rows if blocks else 0


def block_uses(path: Path, block: Block) -> np.ndarray:
    """Returns the uses of a block's documents, as far as they are decided."""
    return np.fromfile(path, np.uint8, block.rows, offset=block.first)
