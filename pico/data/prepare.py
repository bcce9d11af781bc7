"""From documents to tokens: exact deduplication, tokenizer, held-out sets, packed shards, and the account of it all.

`prepare` runs four steps, each a function of files and settings: `survey`, `make_tokenizer`, `tokenize` and
`write_tokens`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pico.data.baseline import bits_per_byte, unigram_bits
from pico.data.heldout import heldout_sample, target_bytes, write_heldout
from pico.data.packing import cut, join, pack, write_shards
from pico.data.survey import Documents, sample_texts, survey
from pico.data.tokenizer import (
    EOS,
    encode,
    load_tokenizer,
    pretrained,
    save_tokenizer,
    token_bytes,
    tokenizer_meta,
    train_bpe,
)
from pico.errors import PicoError
from pico.files import publishing, write_json
from pico.sections import Packing, Tokenizer
from pico.spread import spread

Progress = Callable[[float], None]
"""Told the fraction done, in [0, 1]."""


@dataclass
class Tokens:
    """The ids of the kept documents of one source, one after another, each with its EOS."""

    ids: np.ndarray
    """int32, (tokens,)"""
    lengths: np.ndarray
    """Ids of each document, EOS counted; int64, (documents kept,)."""
    heldout: np.ndarray
    """Which of the kept documents are held out, bool."""


def prepare(
    documents: Path,
    target: Path,
    *,
    tokenizer: Tokenizer,
    packing: Packing,
    vocab_size: int,
    step: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
    progress: Progress = lambda fraction: None,
) -> dict[str, Any]:
    """Makes `target` (`data/tokens/`) from `documents` (`data/documents/`), whole or not at all; gives the provenance.

    `vocab_size`: entries of the models' embedding, which must hold every id. `step` wraps each of the four steps (the
    flow makes them Prefect tasks). `progress` is told how much of the text is tokenized. Raises PicoError where a
    source is missing, a domain has too little text, or the corpus fills no row.
    """
    with publishing(target) as folder:
        surveyed = step(survey)(documents, packing.heldout_fraction, packing.max_domain_bytes)
        step(make_tokenizer)(folder / "tokenizer", documents, surveyed, tokenizer, packing, vocab_size)
        tokens = step(tokenize)(folder / "tokenizer", surveyed, progress)
        return step(write_tokens)(folder, surveyed, tokens, packing)


def make_tokenizer(
    folder: Path,
    documents: Path,
    surveyed: Sequence[Documents],
    settings: Tokenizer,
    packing: Packing,
    vocab_size: int,
) -> None:
    """Writes to `folder` the tokenizer asked for: pretrained, or trained on a sample of the training documents."""
    if settings.pretrained is not None:
        eos = settings.pretrained.eos_token
        made = pretrained(documents / "tokenizer", settings.vocab_size, eos)
    else:
        eos = EOS
        made = train_bpe(sample_texts(surveyed, packing.tokenizer_sample_bytes), settings.vocab_size)
    if made.get_vocab_size() > vocab_size:
        raise PicoError(
            f"the tokenizer has {made.get_vocab_size()} entries, the models' embedding only {vocab_size}",
            where=f"params.yaml: model.vocab_size = {vocab_size}",
            mend="raise model.vocab_size",
        )
    save_tokenizer(made, folder, kind=settings.kind, eos_token=eos)


def tokenize(
    tokenizer: Path, surveyed: Sequence[Documents], progress: Progress = lambda fraction: None
) -> list[Tokens]:
    """Encodes every kept document; one `Tokens` a source. Raises PicoError where the tokenizer loses text.

    A chunk is a row group of the documents' file, whatever the number of workers, so the result is the same for any.
    """
    calls, owners = [], []
    for number, part in enumerate(surveyed):
        starts = [0, *part.group_ends[:-1].tolist()]
        for group, (start, end) in enumerate(zip(starts, part.group_ends.tolist(), strict=True)):
            calls.append((tokenizer, part.path, group, np.flatnonzero(part.kept[start:end])))
            owners.append(number)
    results: list[Any] = [None] * len(calls)
    for done, (index, result) in enumerate(spread(tokenize_group, calls), start=1):
        results[index] = result
        progress(done / len(calls))
    lossless = load_tokenizer(tokenizer).normalizer is None
    sizes = token_bytes(load_tokenizer(tokenizer))
    found = []
    for number, part in enumerate(surveyed):
        own = [result for result, owner in zip(results, owners, strict=True) if owner == number]
        tokens = Tokens(
            np.concatenate([np.zeros(0, np.int32), *(ids for ids, _ in own)]),
            np.concatenate([np.zeros(0, np.int64), *(lengths for _, lengths in own)]),
            part.heldout[part.kept],
        )
        if lossless and sizes[tokens.ids].sum() != part.n_bytes[part.kept].sum():
            raise PicoError(
                f"the tokenizer does not give back the text of source {part.source!r}: "
                f"{part.n_bytes[part.kept].sum()} bytes became tokens of {sizes[tokens.ids].sum()}",
                where=str(tokenizer),
                mend="name another tokenizer in tokenizer.pretrained; please report this",
            )
        found.append(tokens)
    return found


def tokenize_group(tokenizer: Path, path: Path, group: int, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encodes documents `kept` of one row group: ids (int32) and lengths (int64), as `pico.data.tokenizer.encode`."""
    texts = pq.ParquetFile(path).read_row_group(group, columns=["text"])["text"].take(pa.array(kept, pa.int64()))
    return encode(load_tokenizer(tokenizer), texts.to_pylist(), tokenizer_meta(tokenizer)["eos_id"])


def write_tokens(
    folder: Path, surveyed: Sequence[Documents], tokens: Sequence[Tokens], packing: Packing
) -> dict[str, Any]:
    """Writes shards, held-out rows and provenance.json to `folder`, which has the tokenizer; gives the provenance."""
    row_len = packing.seq_len + 1
    meta = tokenizer_meta(folder / "tokenizer")
    sizes = token_bytes(load_tokenizer(folder / "tokenizer"))

    ids, lengths = _select(tokens, [~part.heldout for part in tokens])
    rows, tail = pack(ids, lengths, seq_len=packing.seq_len, seed=packing.seed)
    if not len(rows):
        raise PicoError(
            f"the corpus is too small for one training row: {len(ids)} tokens in {len(lengths)} training documents, "
            f"and a row holds packing.seq_len + 1 = {row_len}",
            where=f"params.yaml: corpus.sources, packing.seq_len = {packing.seq_len}",
            mend="give it more text, or lower packing.seq_len",
        )
    write_shards(rows, folder / "train", packing.rows_per_shard)

    heldout, heldout_tokens, heldout_whole = {}, {}, {}
    for domain in sorted({part.domain for part in surveyed}):
        own = [number for number, part in enumerate(surveyed) if part.domain == domain]
        ids, lengths = _select([tokens[number] for number in own], [tokens[number].heldout for number in own])
        names = [surveyed[n].ids[d] for n in own for d in np.flatnonzero(surveyed[n].kept & surveyed[n].heldout)]
        in_order = join(ids, lengths, np.array(sorted(range(len(names)), key=names.__getitem__), np.int64))
        sample = heldout_sample(in_order, row_len, packing.heldout_rows)
        heldout[domain] = sample, target_bytes(sample, sizes)
        heldout_tokens[domain], heldout_whole[domain] = len(ids), len(cut(in_order, row_len))
        write_heldout(folder / "heldout" / f"{domain}.parquet", *heldout[domain])

    domains = {}
    for domain, (sample, _) in heldout.items():
        own = [number for number, part in enumerate(surveyed) if part.domain == domain]
        domains[domain] = _account([surveyed[n] for n in own], [tokens[n] for n in own]) | {
            "heldout_rows": len(sample),
            "heldout_rows_left_out": heldout_whole[domain] - len(sample),
            "heldout_tail_tokens": heldout_tokens[domain] - heldout_whole[domain] * row_len,
        }
    total: dict[str, Any] = {
        key: sum(account[key] for account in domains.values())
        for key in next(iter(domains.values()))
        if key not in ("sources", "bytes_per_token")
    }
    total["bytes_per_token"] = _ratio(total["bytes"], total["tokens"])
    total |= {
        "train_rows": len(rows),
        "tail_tokens_dropped": len(tail),
        "tail_documents_dropped": int((tail == meta["eos_id"]).sum()),
    }
    provenance = {
        "tokenizer": meta,
        "row_tokens": row_len,
        "domains": domains,
        "total": total,
        "unigram": bits_per_byte(unigram_bits(rows, meta["vocab_size"]), heldout),
    }
    write_json(folder / "provenance.json", provenance)
    return provenance


def _select(tokens: Sequence[Tokens], masks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The ids and lengths of the documents that the masks name, sources one after another."""
    ids = [part.ids[np.repeat(mask, part.lengths)] for part, mask in zip(tokens, masks, strict=True)]
    lengths = [part.lengths[mask] for part, mask in zip(tokens, masks, strict=True)]
    return np.concatenate(ids), np.concatenate(lengths)


def _account(parts: Sequence[Documents], tokens: Sequence[Tokens]) -> dict[str, Any]:
    """What became of the documents of one domain."""
    documents = sum(len(part.ids) for part in parts)
    distinct = sum(int(part.distinct.sum()) for part in parts)
    kept = sum(int(part.kept.sum()) for part in parts)
    read_bytes = sum(int(part.n_bytes.sum()) for part in parts)
    kept_bytes = sum(int(part.n_bytes[part.kept].sum()) for part in parts)
    n_tokens = sum(len(part.ids) for part in tokens)
    heldout_tokens = sum(int(part.lengths[part.heldout].sum()) for part in tokens)
    heldout = sum(int(part.heldout.sum()) for part in tokens)
    return {
        "sources": [part.source for part in parts],
        "documents_read": documents,
        "bytes_read": read_bytes,
        "duplicates_dropped": documents - distinct,
        "sampled_out": distinct - kept,
        "documents": kept,
        "bytes": kept_bytes,
        "tokens": n_tokens,
        "bytes_per_token": _ratio(kept_bytes, n_tokens),
        "train_documents": kept - heldout,
        "train_tokens": n_tokens - heldout_tokens,
        "heldout_documents": heldout,
        "heldout_tokens": heldout_tokens,
    }


def _ratio(a: int, b: int) -> float:
    return a / b if b else 0.0
