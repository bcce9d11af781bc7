"""The provenance of the tokens: counts by domain and reason, the unigram baseline, and the use of every document."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pico.data.preparation.blocks import (
    Block,
    Store,
    as_integers,
    block_uses,
    by_domain,
    new_array,
    replacing,
    write_bytes,
)
from pico.data.preparation.packing import copies
from pico.data.preparation.shards import WRITE, source_spans
from pico.data.tokens.documents import DROPPED, LABELS, Use
from pico.data.tokens.loader import heldout_rows
from pico.files import read_json


def domain_statistics(store: Store, blocks: Sequence[Block], uses: Path) -> dict[str, dict[str, Any]]:
    """Returns the counts of each domain, up to its tokens."""
    return {domain: _domain_statistics(store, own, uses) for domain, own in by_domain(blocks).items()}


def _domain_statistics(store: Store, own: Sequence[Block], uses: Path) -> dict[str, Any]:
    by_use = np.zeros(len(Use), np.int64)
    read_bytes = used_bytes = tokens = heldout_tokens = cleaned = changed = 0
    redacted: Counter[str] = Counter()
    for block in own:
        by_use += np.bincount(block_uses(uses, block), minlength=len(Use))
        read_bytes += int(pq.read_table(store.file("index", block.number))["n_bytes"].to_numpy().sum())
        counts = read_json(store.file("cleaned", block.number, ".json"))
        cleaned, redacted = cleaned + counts["changed"], redacted + Counter(counts["redacted"])
        path = store.file("tokens", block.number)
        if path.exists():
            table = pq.read_table(path, columns=["n_bytes", "length", "heldout", "changed"])
            lengths = table["length"].to_numpy()
            used_bytes += int(table["n_bytes"].to_numpy().sum())
            tokens += int(lengths.sum())
            heldout_tokens += int(lengths[table["heldout"].to_numpy()].sum())
            changed += int(table["changed"].to_numpy().sum())
    train, heldout = int(by_use[Use.TRAIN]), int(by_use[Use.HELDOUT])
    return {
        "sources": list(dict.fromkeys(block.name for block in own)),
        "documents_read": int(by_use.sum()),
        "bytes_read": read_bytes,
        "duplicates_dropped": int(by_use[Use.DUPLICATE]),
        "sampled_out": int(by_use[Use.SAMPLED_OUT]),
        "dropped": {use.label: int(by_use[use]) for use in DROPPED},
        "changed_by_cleaning": cleaned,
        "redacted": {kind: redacted[kind] for kind in ("email", "phone", "key")},
        "documents": train + heldout,
        "bytes": used_bytes,
        "tokens": tokens,
        "bytes_per_token": _ratio(used_bytes, tokens),
        "changed_by_tokenizer": changed,
        "train_documents": train,
        "train_tokens": tokens - heldout_tokens,
        "heldout_documents": heldout,
        "heldout_tokens": heldout_tokens,
    }


def provenance_of(
    out: Path,
    domains: Mapping[str, dict[str, Any]],
    repetitions: Mapping[str, float],
    counts: Mapping[str, int],
    heldout: Mapping[str, Mapping[str, int]],
    unigram: np.ndarray,
    meta: Mapping[str, Any],
    row_len: int,
) -> dict[str, Any]:
    """Returns the whole of provenance.json.

    `domains`: see `domain_statistics`; `counts`: see `pack`; `unigram`: how often each id occurs in the training rows.
    """
    statistics = {
        domain: entry
        | {
            "repetitions": repetitions[domain],
            "heldout_rows": heldout[domain]["kept"],
            "heldout_rows_left_out": heldout[domain]["rows"] - heldout[domain]["kept"],
            "heldout_tail_tokens": heldout[domain]["tokens"] - heldout[domain]["rows"] * row_len,
            "tinsy_rows": heldout[domain]["tinsy"],
        }
        for domain, entry in domains.items()
    }
    total: dict[str, Any] = {
        key: _sum([entry[key] for entry in statistics.values()])
        for key in next(iter(statistics.values()))
        if key not in ("sources", "bytes_per_token", "repetitions")
    }
    total["bytes_per_token"] = _ratio(total["bytes"], total["tokens"])
    total |= {
        "train_rows": counts["rows"],
        "seen_documents": counts["documents"],
        "seen_tokens": counts["tokens"],
        "train_eos": int(unigram[meta["eos_id"]]),
        "tail_tokens_dropped": counts["tail_tokens"],
        "tail_documents_dropped": counts["tail_documents"],
    }
    return {
        "tokenizer": dict(meta),
        "row_tokens": row_len,
        "domains": statistics,
        "total": total,
        "unigram": bits_per_byte(unigram_bits(unigram), heldout_rows(out)),
    }


def _ratio(a: int, b: int) -> float:
    return a / b if b else 0.0


def _sum(values: Sequence[Any]) -> Any:
    """Returns the sum of numbers, or key by key of dicts of them."""
    if isinstance(values[0], Mapping):
        return {key: _sum([value[key] for value in values]) for key in values[0]}
    return sum(values)


def unigram_bits(counts: np.ndarray) -> np.ndarray:
    """Returns the bits of each id, float64 (vocab_size,), from its count in the training rows, add one (Laplace).

    They are the baseline: the score of a model that knows only how often each token occurs.
    """
    smoothed = counts.astype(np.float64) + 1.0
    return np.log2(smoothed.sum()) - np.log2(smoothed)


def bits_per_byte(bits: np.ndarray, heldout: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Returns bits per byte of each domain's held-out rows (targets `rows[:, 1:]`) and of "all" together.

    `heldout`: domain -> (rows (n, row_len), n_bytes (n,)), as `tokens.loader.heldout_rows` gives them. A domain
    without rows is left out. The end of a document costs bits and counts no bytes, as it does for a model.
    """
    totals = {
        domain: (float(bits[rows[:, 1:]].sum()), int(n_bytes.sum())) for domain, (rows, n_bytes) in heldout.items()
    }
    totals["all"] = (sum(b for b, _ in totals.values()), sum(n for _, n in totals.values()))
    return {domain: total / n for domain, (total, n) in totals.items() if n}


def write_uses(store: Store, out: Path, blocks: Sequence[Block], uses: Path, repetitions: Mapping[str, float]) -> None:
    """Writes `documents/`, the use of every document (see `pico.data.tokens.documents`), a file a source.

    `uses`: the decision about each document. The shards and the held-out rows, which are written before, left the
    numbers of the documents in them. `repetitions`: by domain, see `mixture`.
    """
    (out / "documents").mkdir(exist_ok=True)

    def combine(folder: Path) -> None:
        published = new_array(folder / "published", bool, blocks)
        for path in (store.folder / "published").glob("[!.]*"):
            published[np.fromfile(path, np.int64)] = True
        published.flush()

    published = store.once("combined", combine) / "published"
    calls = []
    for number, source in source_spans(blocks).items():
        own = [block for block in blocks if block.source == number]
        calls.append((number, out, own, uses, published, repetitions[source.domain]))
    store.map("documents", write_source_uses, calls)


def write_source_uses(
    store: Store, number: int, out: Path, blocks: Sequence[Block], uses: Path, published: Path, repetitions: float
) -> None:
    """Writes the table of one source, whose blocks are `blocks`; a row group a block."""
    schema = pa.schema([("id", pa.string()), ("use", pa.string())])
    options = WRITE | {"use_dictionary": ["use"]}
    with (
        replacing(out / "documents" / f"{blocks[0].name}.parquet") as partial,
        pq.ParquetWriter(partial, schema, **options) as writer,
    ):
        for block in blocks:
            ids = block.read(["id"])["id"]
            own = block_uses(uses, block)
            found = np.fromfile(published, bool, block.rows, offset=block.first)
            repeated = copies(as_integers(ids.to_pylist())[:, 0], repetitions) > 0
            own[(own == Use.TRAIN) & ~found] = Use.TAIL
            own[(own == Use.TAIL) & ~repeated] = Use.NOT_REPEATED
            own[(own == Use.HELDOUT) & ~found] = Use.BEYOND_HELDOUT_ROWS
            table = pa.table({"id": ids, "use": LABELS.take(pa.array(own))})
            writer.write_table(table, row_group_size=block.rows or None)
    write_bytes(store.file("documents", number, ".done"), b"")
