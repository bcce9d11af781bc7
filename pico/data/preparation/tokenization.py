"""From cleaned documents to ids, block by block: files of plain ids, and tables of where each document lies."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pico.config import Tokenizer
from pico.data.preparation.sampling import block_uses, words_of
from pico.data.preparation.work import Block, Progress, Work, write_bytes, write_table
from pico.data.tokens.documents import Use
from pico.data.tokens.encoding import Encoder
from pico.data.tokens.tokenizer import (
    EOS,
    TokenBytes,
    load_tokenizer,
    pretrained,
    save_tokenizer,
    tokenizer_meta,
    train_bpe,
)
from pico.errors import PicoError
from pico.spread import release_memory

CHECKED = 2**17
"""Ids that are turned back into text at a time."""


def sample_texts(work: Work, blocks: Sequence[Block], uses: Path, sample_bytes: int) -> list[str]:
    """Training texts of `sample_bytes` in all, each domain's share that of its bytes.

    Within a domain the lowest ids come first: hashes, so a random sample, and the same whatever the order of sources.
    """
    kept = np.memmap(uses, np.uint8, "r") == Use.TRAIN
    sizes: dict[str, int] = {}
    for block in blocks:
        path = work.file("clean", block.number)
        own = pq.read_table(path, columns=["doc", "n_bytes"]) if path.exists() else None
        size = int(own["n_bytes"].to_numpy()[kept[own["doc"].to_numpy()]].sum()) if own else 0
        sizes[block.domain] = sizes.get(block.domain, 0) + size
    total = sum(sizes.values())
    starts = np.array([block.first for block in blocks])
    domains = sorted(sizes)
    domain_of = np.array([domains.index(block.domain) for block in blocks])
    budgets = np.array([-(-sample_bytes * sizes[domain] // total) if total else 0 for domain in domains])
    chosen: dict[int, dict[int, int]] = {}  # block -> document -> bytes
    for batch in work.sorted("clean", "doc, n_bytes", "hi, lo, doc"):
        owner = np.searchsorted(starts, batch["doc"], side="right") - 1
        for index in np.flatnonzero(kept[batch["doc"]] & (budgets[domain_of[owner]] > 0)).tolist():
            number, domain = int(owner[index]), domain_of[owner[index]]
            if budgets[domain] > 0:
                size = min(int(budgets[domain]), int(batch["n_bytes"][index]))
                chosen.setdefault(number, {})[int(batch["doc"][index])] = size
                budgets[domain] -= size
        if (budgets <= 0).all():
            break
    texts = []
    for number in sorted(chosen):
        table = pq.read_table(work.file("clean", number), columns=["doc", "text"])
        wanted = table.filter(pc.is_in(table["doc"], pa.array(sorted(chosen[number]))))
        for document, text in zip(wanted["doc"].to_pylist(), wanted["text"].to_pylist(), strict=True):
            texts.append(text.encode()[: chosen[number][document]].decode(errors="ignore"))
    return texts


def make_tokenizer(
    folder: Path,
    documents: Path,
    work: Work,
    blocks: Sequence[Block],
    uses: Path | None,
    settings: Tokenizer,
    sample_bytes: int,
    vocab_size: int,
) -> None:
    """Writes to `folder` the tokenizer asked for: pretrained, or trained on a sample of the training documents, which
    `uses` tells."""
    if settings.pretrained is not None:
        eos = settings.pretrained.eos_token
        made = pretrained(documents / "tokenizer", settings.vocab_size, eos)
    else:
        assert uses is not None
        eos = EOS
        made = train_bpe(sample_texts(work, blocks, uses, sample_bytes), settings.vocab_size)
    if made.get_vocab_size() > vocab_size:
        raise PicoError(
            f"the tokenizer has {made.get_vocab_size()} entries, the models' embedding only {vocab_size}",
            where=f"params.yaml: model.vocab_size = {vocab_size}",
            mend="raise model.vocab_size",
        )
    save_tokenizer(made, folder, kind=settings.kind, eos_token=eos)
    release_memory()  # of the words that were counted


def tokenize(work: Work, blocks: Sequence[Block], uses: Path, tokenizer: Path, progress: Progress) -> None:
    """Encodes every kept document. Raises PicoError where the tokenizer loses text."""
    work.each("tokens", tokenize_block, [(block, uses, tokenizer) for block in blocks], progress,
              [block.rows for block in blocks])  # fmt: skip


def tokenize_block(work: Work, block: Block, uses: Path, tokenizer: Path) -> None:
    """Writes the ids of a block's kept documents, and of each `doc`, `row`, `id_0` to `id_3`, `domain`, `source`,
    `block`, `heldout`, `n_bytes`, `start` (in the file of ids), `length` (EOS counted) and `changed`: whether the ids
    do not give back the text."""
    (work.folder / "ids").mkdir(exist_ok=True)
    path = work.file("clean", block.number)
    if not path.exists():
        return
    table = pq.read_table(path, columns=["doc", "row", "id", "n_bytes", "text"])
    use = block_uses(uses, block)[table["doc"].to_numpy() - block.first]
    table = table.filter(pa.array(use <= Use.HELDOUT))
    use = use[use <= Use.HELDOUT]
    encoder, pieces = _tokenizer(tokenizer)
    loaded = encoder.tokenizer
    ids, lengths = encoder.encode(table["text"])
    starts = np.cumsum(lengths) - lengths
    changed = changed_documents(pieces, ids, lengths, table["text"].combine_chunks())
    if changed.any() and loaded.normalizer is None:
        first = table["id"][int(np.flatnonzero(changed)[0])].as_py()
        raise PicoError(
            f"the tokenizer does not give back the text of source {block.name!r}: "
            f"{int(changed.sum())} documents of {len(changed)} come back as others, the first of them {first}",
            where=str(tokenizer),
            mend="name another tokenizer in tokenizer.pretrained; please report this",
        )
    words = words_of(table["id"].to_pylist())
    columns = {name: table[name] for name in ("doc", "row", "n_bytes")}
    columns |= {f"id_{number}": words[:, number] for number in range(4)}
    columns |= {
        "source": np.full(len(use), block.source, np.int32),
        "block": np.full(len(use), block.number, np.int32),
        "heldout": use == Use.HELDOUT,
        "start": starts,
        "length": lengths,
        "changed": changed,
    }
    write_bytes(work.file("ids", block.number, ".ids"), ids.astype(id_type(loaded.get_vocab_size())))
    write_table(work.file("tokens", block.number), pa.table(columns), use_dictionary=False)


def changed_documents(pieces: TokenBytes, ids: np.ndarray, lengths: np.ndarray, texts: pa.Array) -> np.ndarray:
    """Which texts their ids (each with EOS, which stands for no bytes) do not give back, to the byte: bool."""
    texts = texts.cast(pa.large_string())
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
    ends = np.cumsum(lengths)
    changed = np.zeros(len(lengths), bool)
    first = 0
    while first < len(lengths):  # some documents at a time
        begin = int(ends[first] - lengths[first])
        last = max(first + 1, int(np.searchsorted(ends, begin + CHECKED, side="right")))
        sizes = pieces.sizes[ids[begin : ends[last - 1]]]
        given = np.add.reduceat(sizes, ends[first:last] - lengths[first:last] - begin)
        expected = np.diff(offsets[first : last + 1])
        back = pieces.text(ids[begin : ends[last - 1]])
        if (given != expected).any():
            changed[first:last] = given != expected
            stops = np.cumsum(given)
            for index in np.flatnonzero(given == expected).tolist():
                own = back[stops[index] - given[index] : stops[index]]
                theirs = data[offsets[first + index] : offsets[first + index + 1]]
                changed[first + index] = not np.array_equal(own, theirs)
        elif not np.array_equal(back, data[offsets[first] : offsets[last]]):
            wrong = np.flatnonzero(back != data[offsets[first] : offsets[last]])
            changed[first + np.searchsorted(np.cumsum(expected), wrong, side="right")] = True
        first = last
    return changed


def id_type(vocab_size: int) -> type:
    """The smallest type that holds every id."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


@lru_cache(maxsize=2)
def _loaded(tokenizer: Path, written: int) -> tuple[Encoder, TokenBytes]:
    loaded = load_tokenizer(tokenizer)
    return Encoder(loaded, tokenizer_meta(tokenizer)["eos_id"]), TokenBytes(loaded)


def _tokenizer(tokenizer: Path) -> tuple[Encoder, TokenBytes]:
    """Loaded once a process."""
    return _loaded(tokenizer, (tokenizer / "tokenizer.json").stat().st_mtime_ns)
