"""From documents to tokens: exact deduplication, tokenizer, held-out sets, packed shards, and the account of it all.

`prepare` runs four steps, each a function of files and settings: `survey`, `make_tokenizer`, `tokenize` and
`write_tokens`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pico.data.baseline import bits_per_byte, unigram_bits
from pico.data.heldout import held_out, heldout_sample, target_bytes, write_heldout
from pico.data.packing import cut, join, pack, write_shards
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
from pico.files import publishing, read_json, write_json
from pico.sections import Packing, Tokenizer
from pico.spread import spread

Progress = Callable[[float], None]
"""Told the fraction done, in [0, 1]."""


@dataclass
class Documents:
    """What is known of the documents of one source, in reading order; their texts stay in the file."""

    source: str
    domain: str
    path: Path
    ids: np.ndarray
    """Of str objects."""
    n_bytes: np.ndarray
    """UTF-8 bytes of each, int64."""
    distinct: np.ndarray
    """Which are the first of their text over all sources, bool."""
    kept: np.ndarray
    """Which of those are within the domain's share, and so become tokens, bool."""
    heldout: np.ndarray
    """Which are held out (among those kept), bool."""
    group_ends: np.ndarray = field(repr=False)
    """The end of each row group of the file, as a document number."""

    @property
    def train(self) -> np.ndarray:
        """Which are trained on, bool."""
        return self.kept & ~self.heldout


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


def survey(documents: Path, heldout_fraction: float, max_domain_bytes: int | None = None) -> list[Documents]:
    """Reads ids and lengths of all documents, in the order of sources.json, and decides what each is for.

    Of documents with the same text the first is kept; the rest are dropped. Of a domain with more than
    `max_domain_bytes` of text a random sample of documents is kept.
    """
    seen: set[str] = set()
    surveyed = [_survey_source(documents, entry, seen) for entry in read_json(documents / "sources.json")]
    for domain in sorted({documents.domain for documents in surveyed}):
        parts = [part for part in surveyed if part.domain == domain]
        if max_domain_bytes is not None:
            _sample(parts, max_domain_bytes)
        kept = [identity for part in parts for identity, keep in zip(part.ids, part.kept, strict=True) if keep]
        if len(kept) < 2:
            raise PicoError(
                f"domain {domain!r} has {len(kept)} documents after exact deduplication and sampling; it needs at least 2, "
                "one to train on and one to hold out",
                where=f"{documents}: {', '.join(part.path.name for part in parts)}",
                mend="give it more documents (cut a long one into files), raise packing.max_domain_bytes, "
                "or take it out of corpus.sources",
            )
        chosen, start = held_out(kept, heldout_fraction), 0
        if chosen.all():
            raise PicoError(
                f"all {len(kept)} documents of domain {domain!r} are held out: none is left to train on",
                where=f"params.yaml: packing.heldout_fraction = {heldout_fraction}",
                mend="lower packing.heldout_fraction, or give the domain more documents",
            )
        for part in parts:
            end = start + int(part.kept.sum())
            part.heldout[part.kept] = chosen[start:end]
            start = end
    return surveyed


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


def sample_texts(surveyed: Sequence[Documents], sample_bytes: int) -> list[str]:
    """Training texts of `sample_bytes` in all, each domain's share that of its bytes.

    Within a domain the lowest ids come first: hashes, so a random sample, and the same whatever the order of sources.
    """
    total = sum(int(part.n_bytes[part.train].sum()) for part in surveyed)
    chosen: dict[int, dict[int, int]] = {number: {} for number in range(len(surveyed))}  # part -> document -> bytes
    for domain in sorted({part.domain for part in surveyed}):
        candidates = [
            (part.ids[document], number, int(document))
            for number, part in enumerate(surveyed)
            if part.domain == domain
            for document in np.flatnonzero(part.train)
        ]
        candidates.sort()
        domain_bytes = sum(int(surveyed[number].n_bytes[document]) for _, number, document in candidates)
        budget = -(-sample_bytes * domain_bytes // total) if total else 0
        for _, number, document in candidates:
            if budget <= 0:
                break
            size = min(budget, int(surveyed[number].n_bytes[document]))
            chosen[number][document] = size
            budget -= size
    texts = []
    for number, part in enumerate(surveyed):
        wanted = sorted(chosen[number])
        for document, text in zip(wanted, _texts(part, np.asarray(wanted, np.int64)), strict=True):
            texts.append(text.encode()[: chosen[number][document]].decode(errors="ignore"))
    return texts


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


def _sample(parts: Sequence[Documents], max_bytes: int) -> None:
    """Keeps documents of one domain up to `max_bytes` of text, in the order of their hashes' last digits.

    The last, because the first digits decide what is held out: the two choices are independent.
    """
    order = sorted(
        (identity[::-1], number, document)
        for number, part in enumerate(parts)
        for document, identity in enumerate(part.ids)
        if part.distinct[document]
    )
    total = 0
    for _, number, document in order:
        total += int(parts[number].n_bytes[document])
        parts[number].kept[document] = total <= max_bytes


def _survey_source(documents: Path, entry: dict[str, Any], seen: set[str]) -> Documents:
    path = documents / f"{entry['name']}.parquet"
    try:
        file = pq.ParquetFile(path)
        columns = ["id", "text"]  # `select` too, because pyarrow passes over a column that is not there
        tables = [file.read_row_group(group, columns).select(columns) for group in range(file.num_row_groups)]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise PicoError(f"the documents of source {entry['name']!r} cannot be read: {error}", where=str(path),
                        mend="run: dvc repro fetch") from error  # fmt: skip
    ids: list[str] = []
    sizes = [np.zeros(0, np.int64)]
    for table in tables:
        ids += table["id"].to_pylist()
        sizes.append(pc.binary_length(table["text"]).to_numpy().astype(np.int64))
    distinct = np.zeros(len(ids), bool)
    for number, identity in enumerate(ids):
        if identity not in seen:
            seen.add(identity)
            distinct[number] = True
    return Documents(
        source=entry["name"],
        domain=entry["domain"],
        path=path,
        ids=np.array(ids, dtype=object),
        n_bytes=np.concatenate(sizes),
        distinct=distinct,
        kept=distinct.copy(),
        heldout=np.zeros(len(ids), bool),
        group_ends=np.cumsum([table.num_rows for table in tables], dtype=np.int64),
    )


def _texts(part: Documents, wanted: np.ndarray) -> list[str]:
    """The texts of these documents (ascending numbers); row groups that hold none of them are not read."""
    texts: list[str] = []
    file, start = pq.ParquetFile(part.path), 0
    for group, end in enumerate(part.group_ends.tolist()):
        here = wanted[(wanted >= start) & (wanted < end)] - start
        if len(here):
            column = file.read_row_group(group, columns=["text"])["text"]
            texts += column.take(pa.array(here, pa.int64())).to_pylist()
        start = end
    return texts


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
