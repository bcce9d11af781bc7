"""Preparation of rows that are token ids already: what takes the place of cleaning and tokenizing, block by block.

A row counts as a document of `seq_len` + 1 ids without an EOS of its own, so that all that follows (duplicates,
samples, held-out sets, order, shards, provenance) is the same code as for text. What needs text is not done: rows are
pieces of documents that were cleaned, deduplicated and cut elsewhere. Rows are held out one by one, by the hash of
their ids; two rows of one document may lie on either side.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pico.config import Packing, Tokenizer
from pico.data.preparation.sampling import block_uses, choose, halves, new_array, words_of
from pico.data.preparation.tokenization import id_type
from pico.data.preparation.work import Block, Progress, Work, write_bytes, write_table
from pico.data.tokens.documents import Use
from pico.data.tokens.tokenizer import load_tokenizer, token_bytes, tokenizer_meta
from pico.errors import PicoError
from pico.files import canonical_json, read_json


def are_rows(documents: Path, tokenizer: Tokenizer, packing: Packing) -> bool:
    """Whether `data/documents/` holds rows of ids. Raises PicoError where they do not fit the settings."""
    entries = read_json(documents / "sources.json")
    ready = [entry for entry in entries if "row_tokens" in entry]
    if not ready:
        return False
    if len(ready) < len(entries):
        raise PicoError("text and rows of token ids are mixed", where=str(documents), mend="run: dvc repro fetch")
    if tokenizer.pretrained is None:
        raise PicoError(
            f"source {ready[0]['name']!r} is token ids, which mean nothing without the tokenizer that made them",
            where=f"params.yaml: tokenizer.kind = {tokenizer.kind}",
            mend="choose that tokenizer, for instance: tokenizer=olmo for pico-lm/pretokenized-dolma",
        )
    for entry in ready:
        if entry["row_tokens"] != packing.seq_len + 1:
            raise PicoError(
                f"the rows of source {entry['name']!r} have {entry['row_tokens']} ids, not packing.seq_len + 1 = "
                f"{packing.seq_len + 1}",
                where=f"{documents / entry['name']}.parquet row 0; params.yaml: packing.seq_len = {packing.seq_len}",
                mend=f"set packing.seq_len = {entry['row_tokens'] - 1}, and model.max_seq_len to at least that",
            )
    return True


def survey_rows(
    work: Work, blocks: Sequence[Block], max_domain_bytes: int | None, row_len: int, tokenizer: Path, progress: Progress
) -> Path:
    """Gives the file of uses, as `sampling.survey` does for text. Raises PicoError where an id has no entry in the
    tokenizer, or the EOS of the tokenizer is in no row at all: then another one made them."""
    domains = {domain: number for number, domain in enumerate(sorted({block.domain for block in blocks}))}
    calls = [(block, domains[block.domain], row_len, tokenizer) for block in blocks]
    work.each("index", index_rows, calls, progress, [block.rows for block in blocks])
    for name in dict.fromkeys(block.name for block in blocks):
        own = [work.file("index", block.number) for block in blocks if block.name == name]
        if not any(pq.read_table(path, columns=["eos"])["eos"].to_numpy().any() for path in own):
            meta = tokenizer_meta(tokenizer)
            raise PicoError(
                f"no row of source {name!r} holds the end of a document ({meta['eos_token']}, id {meta['eos_id']}): "
                "another tokenizer made these ids",
                where="params.yaml: tokenizer.pretrained",
                mend="choose the tokenizer that made them",
            )
    return choose(work, blocks, max_domain_bytes)


def index_rows(work: Work, block: Block, domain: int, row_len: int, tokenizer: Path) -> None:
    """Writes what sorting needs to know of the rows of a block: `doc`, `domain`, `hi`, `lo`, `n_bytes` (UTF-8 bytes
    that the ids stand for) and `eos` (how many there are)."""
    sizes, eos = _sizes(tokenizer, (tokenizer / "tokenizer.json").stat().st_mtime_ns)
    table = block.read(["id", "file", "row", "input_ids"])
    rows = ids_of(table, row_len)
    wrong = np.argwhere(rows >= len(sizes)) if rows.size else np.zeros((0, 2), np.int64)
    if len(wrong):
        row, place = wrong[0].tolist()
        raise PicoError(
            f"source {block.name!r}: {table['file'][row]} row {table['row'][row]} holds id {rows[row, place]}, but the "
            f"tokenizer has {len(sizes)} entries",
            where=f"{block.path} row {block.first_row + row}; params.yaml: tokenizer.vocab_size = {len(sizes)}",
            mend="choose the tokenizer that made these ids, or correct the row",
        )
    hi, lo = halves(table["id"].to_pylist())
    columns = {
        "doc": np.arange(block.first, block.first + block.rows),
        "domain": np.full(block.rows, domain, np.int32),
        "hi": hi,
        "lo": lo,
        "n_bytes": sizes[rows].sum(axis=1, dtype=np.int64),
        "eos": (rows == eos).sum(axis=1),
    }
    write_table(work.file("index", block.number), pa.table(columns))


def keep_rows(work: Work, blocks: Sequence[Block], chosen: Path, progress: Progress) -> Path:
    """Gives a folder as `pico.data.preparation.filtering` does: the uses as they are, and each row its own cluster."""
    work.each("cleaned", keep_block, [(block, chosen) for block in blocks], progress, [block.rows for block in blocks])

    def decide(folder: Path) -> None:
        uses = new_array(folder / "uses", np.uint8, blocks)
        uses[:] = np.fromfile(chosen, np.uint8)
        uses.flush()
        new_array(folder / "parents", np.int64, blocks).flush()

    return work.once("decided", decide)


def keep_block(work: Work, block: Block, chosen: Path) -> None:
    """`clean/<block>.parquet` of the rows that are neither duplicates nor sampled out, without text."""
    (work.folder / "clean").mkdir(exist_ok=True)
    rows = np.flatnonzero(block_uses(chosen, block) == Use.TRAIN)
    if len(rows):
        index = pq.read_table(work.file("index", block.number), columns=["doc", "hi", "lo", "n_bytes"])
        table = index.take(pa.array(rows)).append_column("row", pa.array(block.first_row + rows))
        ids = block.read(["id"])["id"].take(pa.array(rows))
        write_table(work.file("clean", block.number), table.append_column("id", ids), use_dictionary=False)
    account = {"changed": 0, "redacted": {}}
    write_bytes(work.file("cleaned", block.number, ".json"), canonical_json(account).encode())


def lay_rows(
    work: Work, blocks: Sequence[Block], uses: Path, row_len: int, vocab_size: int, progress: Progress
) -> None:
    """Lays the ids of all kept rows into files by block, as `tokenization.tokenize` does for text."""
    calls = [(block, uses, row_len, vocab_size) for block in blocks]
    work.each("tokens", lay_block, calls, progress, [block.rows for block in blocks])


def lay_block(work: Work, block: Block, uses: Path, row_len: int, vocab_size: int) -> None:
    """The ids of a block's kept rows, and the table of where each lies; `vocab_size`: entries of the tokenizer."""
    (work.folder / "ids").mkdir(exist_ok=True)
    path = work.file("clean", block.number)
    if not path.exists():
        return
    table = pq.read_table(path, columns=["doc", "row", "id", "n_bytes"])
    here = table["doc"].to_numpy() - block.first
    ids = ids_of(block.read(["input_ids"]).take(pa.array(here)), row_len)
    words = words_of(table["id"].to_pylist())
    columns = {name: table[name] for name in ("doc", "row", "n_bytes")}
    columns |= {f"id_{number}": words[:, number] for number in range(4)}
    columns |= {
        "source": np.full(len(ids), block.source, np.int32),
        "block": np.full(len(ids), block.number, np.int32),
        "heldout": block_uses(uses, block)[here] == Use.HELDOUT,
        "start": np.arange(len(ids), dtype=np.int64) * row_len,
        "length": np.full(len(ids), row_len, np.int64),
        "changed": np.zeros(len(ids), bool),
    }
    write_bytes(work.file("ids", block.number, ".ids"), ids.astype(id_type(vocab_size)))
    write_table(work.file("tokens", block.number), pa.table(columns), use_dictionary=False)


def ids_of(table: pa.Table, row_len: int) -> np.ndarray:
    """Column `input_ids` as int32, (rows, row_len); stage `fetch` saw to it that all rows are alike."""
    return table["input_ids"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, row_len)


@lru_cache(maxsize=2)
def _sizes(tokenizer: Path, written: int) -> tuple[np.ndarray, int]:
    """Bytes of each id, and the id of EOS; loaded once a process."""
    return token_bytes(load_tokenizer(tokenizer)), tokenizer_meta(tokenizer)["eos_id"]
