"""Preparation of rows that are token ids already: what takes the place of cleaning and tokenizing, block by block.

A row counts as a document of `seq_len` + 1 ids without an EOS of its own, so that all that follows (duplicates,
samples, held-out sets, order, shards, provenance) is the same code as for text. What needs text is not done: rows are
pieces of documents that were cleaned, deduplicated and cut elsewhere. Rows are held out one by one, by the hash of
their ids; two rows of one document may lie on either side.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pico.config import Packing, Tokenizer
from pico.data.preparation.blocks import Block, Progress, Store, block_uses, new_array, write_bytes, write_table
from pico.data.preparation.filtering import sample_index, write_index
from pico.data.preparation.tokenization import id_type, loaded, write_ids
from pico.data.tokens.documents import Use
from pico.data.tokens.tokenizer import tokenizer_meta
from pico.errors import PicoError
from pico.files import canonical_json, read_json


def are_token_rows(documents: Path, tokenizer: Tokenizer, packing: Packing) -> bool:
    """Returns whether `data/documents/` holds rows of ids. Raises PicoError where they do not fit the settings."""
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


def sample_rows(
    store: Store, blocks: Sequence[Block], max_bytes: int | None, row_len: int, tokenizer: Path, progress: Progress
) -> Path:
    """Returns the file of uses, as `filtering.sample_documents` does for text.

    Raises PicoError where an id has no entry in the tokenizer, or the EOS of the tokenizer is in no row at all: then
    another one made them.
    """
    store.map_blocks("index", index_rows, blocks, progress, row_len, tokenizer)
    for name in dict.fromkeys(block.name for block in blocks):
        own = [store.file("index", block.number) for block in blocks if block.name == name]
        if not any(pq.read_table(path, columns=["eos"])["eos"].to_numpy().any() for path in own):
            meta = tokenizer_meta(tokenizer)
            raise PicoError(
                f"no row of source {name!r} holds the end of a document ({meta['eos_token']}, id {meta['eos_id']}): "
                "another tokenizer made these ids",
                where="params.yaml: tokenizer.pretrained",
                mend="choose the tokenizer that made them",
            )
    return sample_index(store, blocks, max_bytes)


def index_rows(store: Store, block: Block, row_len: int, tokenizer: Path) -> None:
    """Writes the columns of a block's rows that are sorted by: `doc`, `hi`, `lo`, `n_bytes` (UTF-8 bytes that the ids
    stand for) and `eos` (how many there are)."""
    encoder, pieces = loaded(tokenizer)
    sizes = pieces.sizes
    table = block.read(["id", "file", "row", "input_ids"])
    rows = ids_of(table, row_len)
    for row, place in np.argwhere(rows >= len(sizes))[:1].tolist():
        raise PicoError(
            f"source {block.name!r}: {table['file'][row]} row {table['row'][row]} holds id {rows[row, place]}, but the "
            f"tokenizer has {len(sizes)} entries",
            where=f"{block.path} row {block.first_row + row}; params.yaml: tokenizer.vocab_size = {len(sizes)}",
            mend="choose the tokenizer that made these ids, or correct the row",
        )
    n_bytes, eos = sizes[rows].sum(axis=1, dtype=np.int64), (rows == encoder.eos_id).sum(axis=1)
    write_index(store, block, table["id"], n_bytes=n_bytes, eos=eos)


def filter_rows(store: Store, blocks: Sequence[Block], sampled: Path, progress: Progress) -> Path:
    """Returns a folder as `filtering.clean_blocks` does: the uses as they are, and each row its own cluster."""
    store.map_blocks("cleaned", filter_block, blocks, progress, sampled)

    def decide(folder: Path) -> None:
        shutil.copyfile(sampled, folder / "uses")
        new_array(folder / "parents", np.int64, blocks).flush()

    return store.once("filtered", decide)


def filter_block(store: Store, block: Block, sampled: Path) -> None:
    """Writes `clean/<block>.parquet` of the rows that are neither duplicates nor sampled out, without text."""
    (store.folder / "clean").mkdir(exist_ok=True)
    rows = np.flatnonzero(block_uses(sampled, block) == Use.TRAIN)
    if len(rows):
        index = pq.read_table(store.file("index", block.number), columns=["doc", "hi", "lo", "n_bytes"])
        table = index.take(pa.array(rows)).append_column("row", pa.array(block.first_row + rows))
        ids = block.read(["id"])["id"].take(pa.array(rows))
        write_table(store.file("clean", block.number), table.append_column("id", ids), use_dictionary=False)
    counts = {"changed": 0, "redacted": {}}
    write_bytes(store.file("cleaned", block.number, ".json"), canonical_json(counts).encode())


def copy_rows(
    store: Store, blocks: Sequence[Block], uses: Path, row_len: int, vocab_size: int, progress: Progress
) -> None:
    """Copies the ids of all rows in use, as `tokenization.tokenize` encodes text. `vocab_size`: entries of the
    tokenizer."""
    store.map_blocks("tokens", copy_block, blocks, progress, uses, row_len, vocab_size)


def copy_block(store: Store, block: Block, uses: Path, row_len: int, vocab_size: int) -> None:
    """Copies the ids of a block's rows in use."""
    path = store.file("clean", block.number)
    if not path.exists():
        return
    table = pq.read_table(path, columns=["doc", "row", "id", "n_bytes"])
    ids = ids_of(block.read(["input_ids"]).take(pa.array(table["doc"].to_numpy() - block.first)), row_len)
    lengths = np.full(len(ids), row_len, np.int64)
    write_ids(store, block, table, uses, ids.astype(id_type(vocab_size)), lengths, np.zeros(len(ids), bool))


def ids_of(table: pa.Table, row_len: int) -> np.ndarray:
    """Returns column `input_ids` as int32, (rows, row_len); stage `fetch` made sure that all rows are alike."""
    return table["input_ids"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, row_len)
