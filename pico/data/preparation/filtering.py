"""Cleaning and deduplication of all documents, block by block, and which of them are held out."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pico.config import Cleaning
from pico.data.preparation.cleaning import clean, judge
from pico.data.preparation.near_duplicates import (
    Clusters,
    band_keys,
    bands_and_rows,
    buckets,
    signatures,
    similar_pairs,
)
from pico.data.preparation.sampling import block_uses, documents_of, halves, new_array, repeats
from pico.data.preparation.work import Block, Progress, Work, write_bytes, write_table
from pico.data.tokens.documents import Use
from pico.data.tokens.heldout import low_hashes
from pico.errors import PicoError
from pico.files import canonical_json

SIGNATURES = "signatures"


def clean_blocks(work: Work, blocks: Sequence[Block], chosen: Path, settings: Cleaning, progress: Progress) -> Path:
    """Cleans the documents that `chosen` left, drops what is unfit and what is there already; gives the new uses.

    `clean/<block>.parquet` holds the cleaned documents, those that are dropped as duplicates still among them: `doc`,
    `row` (in the source), `id` (of the text as it was fetched), `hi`, `lo`, `n_bytes`, `text`.
    """
    (work.folder / SIGNATURES).touch()
    calls = [(block, chosen, settings) for block in blocks]
    work.each("cleaned", clean_block, calls, progress, [block.rows for block in blocks])

    def decide(folder: Path) -> None:
        uses = new_array(folder / "uses", np.uint8, blocks)
        uses[:] = np.fromfile(chosen, np.uint8)
        for block in blocks:
            uses[block.span] = np.fromfile(work.file("judged", block.number, ".uses"), np.uint8)
        last = None
        for batch in work.sorted("clean", "doc, text_hi, text_lo", "text_hi, text_lo, doc"):
            repeated, last = repeats(batch, ("text_hi", "text_lo"), last)
            uses[batch["doc"][repeated]] = Use.CLEANED_DUPLICATE
        parents = new_array(folder / "parents", np.int64, blocks)
        if settings.near_duplicates != "ignore":
            cluster(work, uses, Clusters(parents), settings)
        if settings.near_duplicates == "drop":
            for block in blocks:
                own = uses[block.span]
                own[(parents[block.span] > 0) & (own == Use.TRAIN)] = Use.NEAR_DUPLICATE
        uses.flush()
        parents.flush()

    return work.once("decided", decide)


def clean_block(work: Work, block: Block, chosen: Path, settings: Cleaning) -> None:
    """Cleans one block: its texts, their uses, signatures and bands, and an account of what was taken out."""
    for kind in ("clean", "judged", "bands"):
        (work.folder / kind).mkdir(exist_ok=True)
    uses = block_uses(chosen, block)
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
        uses[rows] = judged = judge(texts, settings, block.domain)
        fit = np.flatnonzero(judged == Use.TRAIN)
        rows, texts = rows[fit], [texts[index] for index in fit]
        _write_clean(work, block, table["id"].take(pa.array(fit)).to_pylist(), rows, texts)
        if settings.near_duplicates != "ignore":
            _write_signatures(work, block, rows, texts, settings)
    write_bytes(work.file("judged", block.number, ".uses"), uses)
    account = {"changed": changed, "redacted": dict(sorted(redacted.items()))}
    write_bytes(work.file("cleaned", block.number, ".json"), canonical_json(account).encode())


def _write_clean(work: Work, block: Block, ids: list[str], rows: np.ndarray, texts: list[str]) -> None:
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
    write_table(work.file("clean", block.number), pa.table(columns), use_dictionary=False)


def _write_signatures(work: Work, block: Block, rows: np.ndarray, texts: list[str], settings: Cleaning) -> None:
    """Bands by block; signatures in one file over all documents, at their places (holes cost nothing)."""
    found = signatures(texts, settings.permutations, settings.shingle_words)
    keys = band_keys(found, *bands_and_rows(settings.permutations, settings.similarity))
    columns = {"doc": block.first + rows} | {f"band_{number}": key for number, key in enumerate(keys)}
    width = settings.permutations * 4
    own = np.zeros((block.rows, settings.permutations), np.uint32)
    own[rows] = found
    with open(work.folder / SIGNATURES, "r+b") as file:
        file.seek(block.first * width)
        file.write(own.data)
    write_table(work.file("bands", block.number), pa.table(columns), use_dictionary=False)


def cluster(work: Work, uses: np.ndarray, clusters: Clusters, settings: Cleaning) -> None:
    """Joins the near-duplicates among the documents that are kept."""
    bands, _ = bands_and_rows(settings.permutations, settings.similarity)
    file = work.folder / SIGNATURES
    for band in range(bands):
        batches = work.sorted("bands", f"band_{band} AS key, doc", f"band_{band}, doc")
        kept = ((batch["key"][own], batch["doc"][own]) for batch in batches if (own := uses[batch["doc"]] == 0).any())
        for documents, bucket in buckets(kept):
            clusters.join(similar_pairs(documents, bucket, file, settings.permutations, settings.similarity))


def hold_out(work: Work, blocks: Sequence[Block], decided: Path, fraction: float) -> Path:
    """Gives the file of final uses: of each domain the share `fraction`, by hash, is HELDOUT.

    All near-duplicates are on the side of the first of them, whose hash decides. Where no hash of a domain falls in the
    held-out share, the lowest does. Raises PicoError where a domain is too small for two sides.
    """

    def choose(folder: Path) -> None:
        uses = new_array(folder / "uses", np.uint8, blocks)
        uses[:] = np.fromfile(decided / "uses", np.uint8)
        clusters = Clusters(np.memmap(decided / "parents", np.int64, "r"))
        hashes = _first_hashes(work, blocks, clusters)
        held = new_array(folder / "held", bool, blocks)
        held[: len(hashes)] = low_hashes(hashes, fraction)
        for domain in sorted({block.domain for block in blocks}):
            own = [block for block in blocks if block.domain == domain]
            lowest, count, out = _lowest(own, uses, hashes, held)
            if count < 2:
                raise too_few(domain, count, own)
            if not out:
                for block in blocks:  # the cluster's members in other domains too
                    held[block.span] |= hashes[block.span] == lowest
        for block in blocks:
            own_uses = uses[block.span]
            own_uses[held[block.span] & (own_uses == Use.TRAIN)] = Use.HELDOUT
        for domain in sorted({block.domain for block in blocks}):
            spans = [block.span for block in blocks if block.domain == domain]
            if not any((uses[span] == Use.TRAIN).any() for span in spans):
                count = sum(int((uses[span] == Use.HELDOUT).sum()) for span in spans)
                raise PicoError(
                    f"all {count} documents of domain {domain!r} are held out: none is left to train on",
                    where=f"params.yaml: packing.heldout_fraction = {fraction}",
                    mend="lower packing.heldout_fraction, or give the domain more documents",
                )
        uses.flush()

    return work.once("uses", choose) / "uses"


def _first_hashes(work: Work, blocks: Sequence[Block], clusters: Clusters) -> np.ndarray:
    """Of every document the `hi` of the first of its cluster; on disk, uint64."""
    path = work.folder / "hashes"
    hashes = np.memmap(path, np.uint64, "w+", shape=(max(1, documents_of(blocks)),))
    for batch in work.sorted("clean", "doc, hi", "doc"):
        hashes[batch["doc"]] = batch["hi"]
    for block in blocks:
        documents = np.arange(block.first, block.first + block.rows)
        first = clusters.first(documents)
        moved = np.flatnonzero(first != documents)
        hashes[documents[moved]] = hashes[first[moved]]
    return hashes


def _lowest(own: Sequence[Block], uses: np.ndarray, hashes: np.ndarray, held: np.ndarray) -> tuple[int, int, bool]:
    """Of one domain: the lowest hash, the number of documents, and whether any is held out."""
    lowest, count, out = 2**64, 0, False
    for block in own:
        kept = uses[block.span] == Use.TRAIN
        if kept.any():
            lowest = min(lowest, int(hashes[block.span][kept].min()))
            count += int(kept.sum())
            out |= bool(held[block.span][kept].any())
    return lowest, count, out


def too_few(domain: str, count: int, own: Sequence[Block]) -> PicoError:
    """What is said of a domain that cannot have two sides."""
    return PicoError(
        f"domain {domain!r} has {count} documents after deduplication, cleaning and sampling; "
        "it needs at least 2, one to train on and one to hold out",
        where=", ".join(dict.fromkeys(str(block.path) for block in own)),
        mend="give it more documents (cut a long one into files), loosen `cleaning`, raise packing.max_domain_bytes, "
        "or take it out of corpus.sources",
    )
