"""What became of every document: counts by domain and reason, fertility, mixture, and the unigram baseline."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pico.data.preparation.sampling import block_uses
from pico.data.preparation.unigram import bits_per_byte, unigram_bits
from pico.data.preparation.work import Block, Work
from pico.data.tokens.documents import DROPPED, Use
from pico.data.tokens.loader import heldout_rows
from pico.files import read_json


def account(work: Work, blocks: Sequence[Block], uses: Path) -> dict[str, dict[str, Any]]:
    """The account of each domain, up to its tokens."""
    return {
        domain: _domain(work, [block for block in blocks if block.domain == domain], uses)
        for domain in sorted({block.domain for block in blocks})
    }


def _domain(work: Work, own: Sequence[Block], uses: Path) -> dict[str, Any]:
    by_use = np.zeros(len(Use), np.int64)
    read_bytes = kept_bytes = tokens = heldout_tokens = normalised = changed = 0
    redacted: Counter[str] = Counter()
    for block in own:
        by_use += np.bincount(block_uses(uses, block), minlength=len(Use))
        read_bytes += int(pq.read_table(work.file("index", block.number))["n_bytes"].to_numpy().sum())
        cleaned = read_json(work.file("cleaned", block.number, ".json"))
        normalised, redacted = normalised + cleaned["changed"], redacted + Counter(cleaned["redacted"])
        path = work.file("tokens", block.number)
        if path.exists():
            table = pq.read_table(path, columns=["n_bytes", "length", "heldout", "changed"])
            lengths = table["length"].to_numpy()
            kept_bytes += int(table["n_bytes"].to_numpy().sum())
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
        "changed_by_cleaning": normalised,
        "redacted": {kind: redacted[kind] for kind in ("email", "phone", "key")},
        "documents": train + heldout,
        "bytes": kept_bytes,
        "tokens": tokens,
        "bytes_per_token": ratio(kept_bytes, tokens),
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
    """The whole of provenance.json. `unigram`: how often each id occurs in the training rows; `counts`: see `plan`."""
    books = {
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
        key: _sum([entry[key] for entry in books.values()])
        for key in next(iter(books.values()))
        if key not in ("sources", "bytes_per_token", "repetitions")
    }
    total["bytes_per_token"] = ratio(total["bytes"], total["tokens"])
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
        "domains": books,
        "total": total,
        "unigram": bits_per_byte(unigram_bits(unigram), heldout_rows(out)),
    }


def ratio(a: int, b: int) -> float:
    """0 where there is nothing to divide by."""
    return a / b if b else 0.0


def _sum(values: Sequence[Any]) -> Any:
    """Of numbers, or key by key of dicts of them."""
    if isinstance(values[0], Mapping):
        return {key: _sum([value[key] for value in values]) for key in values[0]}
    return sum(values)
