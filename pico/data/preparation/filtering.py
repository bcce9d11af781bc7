"""Decides the use of each document, block by block: duplicates, samples, cleaning, near-duplicates, held-out documents.

Each step reads the uses (`Use` as uint8, one a document, in reading order) that the step before left in a file, and
writes its own.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pico.config import Cleaning
from pico.data.preparation.blocks import (
    Block,
    Progress,
    Store,
    block_numbers,
    block_uses,
    by_domain,
    halves,
    new_array,
    write_bytes,
    write_table,
)
from pico.data.preparation.cleaning import clean, quality
from pico.data.preparation.near_duplicates import Clusters, bands_and_rows, buckets, similar_pairs, text_signatures
from pico.data.tokens.documents import Use
from pico.data.tokens.hashing import band_keys, low_hashes
from pico.errors import PicoError
from pico.files import canonical_json

SIGNATURES = "signatures"


def sample_documents(store: Store, blocks: Sequence[Block], max_domain_bytes: int | None, progress: Progress) -> Path:
    """Returns the file of uses after exact deduplication and sampling: TRAIN, DUPLICATE or SAMPLED_OUT."""
    store.map_blocks("index", index_block, blocks, progress)
    return sample_index(store, blocks, max_domain_bytes)


def sample_index(store: Store, blocks: Sequence[Block], max_domain_bytes: int | None) -> Path:
    """Marks duplicates and samples large domains, from the index of all blocks. Returns the file of uses.

    The first of the documents with the same text is kept. A domain with more than `max_domain_bytes` of text keeps a
    random sample of documents, in the order of their hashes' last digits: the first digits decide what is held out, so
    that the two choices are independent.
    """
    domains = sorted({block.domain for block in blocks})
    codes = np.array([domains.index(block.domain) for block in blocks])

    def mark(folder: Path) -> None:
        uses = new_array(folder / "uses", np.uint8, blocks)
        last = None
        for batch in store.sorted("index", "doc, hi, lo", "hi, lo, doc"):
            repeated, last = repeated_keys(batch, ("hi", "lo"), last)
            uses[batch["doc"][repeated]] = Use.DUPLICATE
        if max_domain_bytes is not None:
            totals = np.zeros(len(domains), np.int64)
            for batch in store.sorted("index", "doc, n_bytes", "lo, hi, doc"):
                owners = codes[block_numbers(blocks, batch["doc"])]
                distinct = uses[batch["doc"]] != Use.DUPLICATE
                for domain in np.unique(owners):
                    here = distinct & (owners == domain)
                    running = totals[domain] + np.cumsum(batch["n_bytes"][here])
                    uses[batch["doc"][here][running > max_domain_bytes]] = Use.SAMPLED_OUT
                    totals[domain] = running[-1] if len(running) else totals[domain]
        uses.flush()

    return store.once("sampled", mark) / "uses"


def index_block(store: Store, block: Block) -> None:
    """Writes the columns of a block's documents that are sorted by."""
    table = block.read(["id", "text"])
    write_index(store, block, table["id"], n_bytes=pc.binary_length(table["text"]).to_numpy().astype(np.int64))


def write_index(store: Store, block: Block, ids: pa.ChunkedArray, **columns: np.ndarray) -> None:
    """Writes `doc`, `hi`, `lo` (the first and the last eight bytes of the hash), and the columns that are given."""
    hi, lo = halves(ids.to_pylist())
    documents = np.arange(block.first, block.first + block.rows)
    write_table(store.file("index", block.number), pa.table({"doc": documents, "hi": hi, "lo": lo, **columns}))


def clean_blocks(store: Store, blocks: Sequence[Block], sampled: Path, settings: Cleaning, progress: Progress) -> Path:
    """Cleans the documents that `sampled` left, and drops unfit ones and duplicates. Returns the folder `filtered`.

    The folder holds `uses` and `parents`, the clusters of near-duplicates. `clean/<block>.parquet` holds the cleaned
    documents, those that are dropped as duplicates still among them: `doc`, `row` (in the source), `id` (of the text as
    it was fetched), `hi`, `lo`, `n_bytes`, `text`.
    """
    (store.folder / SIGNATURES).touch()
    store.map_blocks("cleaned", clean_block, blocks, progress, sampled, settings)

    def decide(folder: Path) -> None:
        uses = new_array(folder / "uses", np.uint8, blocks)
        uses[:] = np.fromfile(sampled, np.uint8)
        for block in blocks:
            uses[block.span] = np.fromfile(store.file("quality", block.number, ".uses"), np.uint8)
        last = None
        for batch in store.sorted("clean", "doc, text_hi, text_lo", "text_hi, text_lo, doc"):
            repeated, last = repeated_keys(batch, ("text_hi", "text_lo"), last)
            uses[batch["doc"][repeated]] = Use.CLEANED_DUPLICATE
        parents = new_array(folder / "parents", np.int64, blocks)
        if settings.near_duplicates != "ignore":
            cluster(store, uses, Clusters(parents), settings)
        if settings.near_duplicates == "drop":
            for block in blocks:
                own = uses[block.span]
                own[(parents[block.span] > 0) & (own == Use.TRAIN)] = Use.NEAR_DUPLICATE
        uses.flush()
        parents.flush()

    return store.once("filtered", decide)


def clean_block(store: Store, block: Block, sampled: Path, settings: Cleaning) -> None:
    """Cleans one block: writes its texts, their uses, signatures and bands, and counts of what was taken out."""
    for kind in ("clean", "quality", "bands"):
        (store.folder / kind).mkdir(exist_ok=True)
    uses = block_uses(sampled, block)
    rows = np.flatnonzero(uses == Use.TRAIN)
    redacted: Counter[str] = Counter()
    changed = 0
    if len(rows):
        table = block.read(["id", "text"]).take(pa.array(rows))
        if settings.max_document_bytes is not None:  # not even looked at: patterns take their time over 50 MB
            sizes = pc.binary_length(table["text"]).to_numpy()
            uses[rows[sizes > settings.max_document_bytes]] = Use.LONG
            own = np.flatnonzero(sizes <= settings.max_document_bytes)
            table, rows = table.take(pa.array(own)), rows[own]
        texts = []
        for text in table["text"].to_pylist():
            cleaned, found = clean(text, settings, block.domain)
            changed += cleaned != text
            redacted += found
            texts.append(cleaned)
        uses[rows] = found_fit = quality(texts, settings, block.domain)
        fit = np.flatnonzero(found_fit == Use.TRAIN)
        rows, texts = rows[fit], [texts[index] for index in fit]
        _write_clean(store, block, table["id"].take(pa.array(fit)).to_pylist(), rows, texts)
        if settings.near_duplicates != "ignore":
            _write_signatures(store, block, rows, texts, settings)
    write_bytes(store.file("quality", block.number, ".uses"), uses)
    counts = {"changed": changed, "redacted": dict(sorted(redacted.items()))}
    write_bytes(store.file("cleaned", block.number, ".json"), canonical_json(counts).encode())


def _write_clean(store: Store, block: Block, ids: list[str], rows: np.ndarray, texts: list[str]) -> None:
    data = [text.encode() for text in texts]
    hi, lo = halves(ids)
    text_hi, text_lo = halves([hashlib.sha256(text).hexdigest() for text in data])
    columns: dict[str, Any] = {
        "doc": block.first + rows,
        "row": block.first_row + rows,
        "id": pa.array(ids, pa.string()),
        "hi": hi,
        "lo": lo,
        "text_hi": text_hi,
        "text_lo": text_lo,
        "n_bytes": np.fromiter(map(len, data), np.int64, len(data)),
        "text": pa.array(texts, pa.large_string()),
    }
    write_table(store.file("clean", block.number), pa.table(columns), use_dictionary=False)


def _write_signatures(store: Store, block: Block, rows: np.ndarray, texts: list[str], settings: Cleaning) -> None:
    """Writes bands by block, and signatures to one file over all documents, at their places (holes cost nothing)."""
    found = text_signatures(texts, settings.permutations, settings.shingle_words)
    keys = band_keys(found, *bands_and_rows(settings.permutations, settings.similarity))
    columns = {"doc": block.first + rows} | {f"band_{number}": key for number, key in enumerate(keys)}
    width = settings.permutations * 4
    own = np.zeros((block.rows, settings.permutations), np.uint32)
    own[rows] = found
    with open(store.folder / SIGNATURES, "r+b") as file:
        file.seek(block.first * width)
        file.write(own.data)
    write_table(store.file("bands", block.number), pa.table(columns), use_dictionary=False)


def cluster(store: Store, uses: np.ndarray, clusters: Clusters, settings: Cleaning) -> None:
    """Joins the near-duplicates among the documents that are in use."""
    bands, _ = bands_and_rows(settings.permutations, settings.similarity)
    file = store.folder / SIGNATURES
    for band in range(bands):
        batches = store.sorted("bands", f"band_{band} AS key, doc", f"band_{band}, doc")
        in_use = ((batch["key"][own], batch["doc"][own]) for batch in batches if (own := uses[batch["doc"]] == 0).any())
        for documents, bucket in buckets(in_use):
            clusters.join(similar_pairs(documents, bucket, file, settings.permutations, settings.similarity))


def hold_out(store: Store, blocks: Sequence[Block], filtered: Path, fraction: float) -> Path:
    """Returns the file of uses after the split: HELDOUT is the share `fraction`, by hash, of each domain.

    All near-duplicates are on the side of the first of them, whose hash decides. Where no hash of a domain falls in the
    held-out share, the lowest does. Raises PicoError where a domain is too small for two sides.
    """

    def split(folder: Path) -> None:
        uses = new_array(folder / "uses", np.uint8, blocks)
        uses[:] = np.fromfile(filtered / "uses", np.uint8)
        clusters = Clusters(np.memmap(filtered / "parents", np.int64, "r"))
        hashes = _first_hashes(store, blocks, clusters)
        heldout = new_array(folder / "heldout", bool, blocks)
        heldout[: len(hashes)] = low_hashes(hashes, fraction)
        domains = by_domain(blocks)
        for domain, own in domains.items():
            lowest, count, any_heldout = _lowest(own, uses, hashes, heldout)
            if count < 2:
                raise PicoError(
                    f"domain {domain!r} has {count} documents after deduplication, cleaning and sampling; "
                    "it needs at least 2, one to train on and one to hold out",
                    where=", ".join(dict.fromkeys(str(block.path) for block in own)),
                    mend="give it more documents (cut a long one into files), loosen `cleaning`, raise "
                    "packing.max_domain_bytes, or take it out of corpus.sources",
                )
            if not any_heldout:
                for block in blocks:  # the cluster's members in other domains too
                    heldout[block.span] |= hashes[block.span] == lowest
        for block in blocks:
            own_uses = uses[block.span]
            own_uses[heldout[block.span] & (own_uses == Use.TRAIN)] = Use.HELDOUT
        for domain, own in domains.items():
            spans = [block.span for block in own]
            if not any((uses[span] == Use.TRAIN).any() for span in spans):
                count = sum(int((uses[span] == Use.HELDOUT).sum()) for span in spans)
                raise PicoError(
                    f"all {count} documents of domain {domain!r} are held out: none is left to train on",
                    where=f"params.yaml: packing.heldout_fraction = {fraction}",
                    mend="lower packing.heldout_fraction, or give the domain more documents",
                )
        uses.flush()

    return store.once("split", split) / "uses"


def _first_hashes(store: Store, blocks: Sequence[Block], clusters: Clusters) -> np.ndarray:
    """Returns, for every document, the `hi` of the first of its cluster: uint64, on disk."""
    path = store.folder / "hashes"
    hashes = new_array(path, np.uint64, blocks)
    for batch in store.sorted("clean", "doc, hi", "doc"):
        hashes[batch["doc"]] = batch["hi"]
    for block in blocks:
        documents = np.arange(block.first, block.first + block.rows)
        first = clusters.first(documents)
        moved = np.flatnonzero(first != documents)
        hashes[documents[moved]] = hashes[first[moved]]
    return hashes


def _lowest(own: Sequence[Block], uses: np.ndarray, hashes: np.ndarray, heldout: np.ndarray) -> tuple[int, int, bool]:
    """Returns the lowest hash of one domain, the number of documents, and whether any is held out."""
    lowest, count, any_heldout = 2**64, 0, False
    for block in own:
        in_use = uses[block.span] == Use.TRAIN
        if in_use.any():
            lowest = min(lowest, int(hashes[block.span][in_use].min()))
            count += int(in_use.sum())
            any_heldout |= bool(heldout[block.span][in_use].any())
    return lowest, count, any_heldout


def repeated_keys(
    batch: dict[str, np.ndarray], keys: Sequence[str], last: tuple | None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Returns whether each row of a sorted batch has the keys of the row before it, bool; and the last keys.

    `last`: the keys of the row before the batch.
    """
    same = np.ones(len(batch[keys[0]]), bool)
    same[0] = last is not None and all(batch[key][0] == value for key, value in zip(keys, last, strict=True))
    for key in keys:
        same[1:] &= batch[key][1:] == batch[key][:-1]
    return same, tuple(batch[key][-1] for key in keys)
