"""From cleaned documents to ids, block by block: files of plain ids, and tables of where each document lies."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pico.data.preparation.blocks import Block, Progress, Store, as_integers, block_uses, write_bytes, write_table
from pico.data.tokens.documents import Use
from pico.data.tokens.encoding import Encoder, spans
from pico.data.tokens.tokenizer import TokenBytes, load_tokenizer, tokenizer_meta
from pico.errors import PicoError

CHECKED = 2**17
"""Ids that are turned back into text at a time."""


def tokenize(store: Store, blocks: Sequence[Block], uses: Path, tokenizer: Path, progress: Progress) -> None:
    """Encodes every document in use. Raises PicoError where the tokenizer loses text."""
    store.map_blocks("tokens", tokenize_block, blocks, progress, uses, tokenizer)


def tokenize_block(store: Store, block: Block, uses: Path, tokenizer: Path) -> None:
    """Encodes a block's documents in use."""
    path = store.file("clean", block.number)
    if not path.exists():
        return
    table = pq.read_table(path, columns=["doc", "row", "id", "n_bytes", "text"])
    use = block_uses(uses, block)[table["doc"].to_numpy() - block.first]
    table = table.filter(pa.array(use <= Use.HELDOUT))
    encoder, pieces = loaded(tokenizer)
    ids, lengths = encoder.encode(table["text"])
    changed = changed_documents(pieces, ids, lengths, table["text"].combine_chunks())
    if changed.any() and encoder.tokenizer.normalizer is None:
        first = table["id"][int(np.flatnonzero(changed)[0])].as_py()
        raise PicoError(
            f"the tokenizer does not give back the text of source {block.name!r}: "
            f"{int(changed.sum())} documents of {len(changed)} come back as others, the first of them {first}",
            where=str(tokenizer),
            mend="name another tokenizer in tokenizer.pretrained; please report this",
        )
    write_ids(store, block, table, uses, ids.astype(id_type(encoder.tokenizer.get_vocab_size())), lengths, changed)


def write_ids(
    store: Store, block: Block, table: pa.Table, uses: Path, ids: np.ndarray, lengths: np.ndarray, changed: np.ndarray
) -> None:
    """Writes the ids of a block's documents in use, and the table of where each document lies.

    `table`: `doc`, `row`, `id`, `n_bytes` of these documents. Columns that are written: `doc`, `row`, `n_bytes`, `id_0`
    to `id_3`, `source`, `block`, `heldout`, `start` (in the file of ids), `length` (EOS counted) and `changed` (bool,
    the ids do not give back the text).
    """
    (store.folder / "ids").mkdir(exist_ok=True)
    integers = as_integers(table["id"].to_pylist())
    columns = {name: table[name] for name in ("doc", "row", "n_bytes")}
    columns |= {f"id_{number}": integers[:, number] for number in range(4)}
    columns |= {
        "source": np.full(len(lengths), block.source, np.int32),
        "block": np.full(len(lengths), block.number, np.int32),
        "heldout": block_uses(uses, block)[table["doc"].to_numpy() - block.first] == Use.HELDOUT,
        "start": np.cumsum(lengths) - lengths,
        "length": lengths,
        "changed": changed,
    }
    write_bytes(store.file("ids", block.number, ".ids"), ids)
    write_table(store.file("tokens", block.number), pa.table(columns), use_dictionary=False)


def changed_documents(pieces: TokenBytes, ids: np.ndarray, lengths: np.ndarray, texts: pa.Array) -> np.ndarray:
    """Returns whether each text is not what its ids (and EOS, which stands for no bytes) give back: bool."""
    texts = texts.cast(pa.large_string())
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
    ends = np.cumsum(lengths)
    changed = np.zeros(len(lengths), bool)
    for first, last in spans(lengths, CHECKED):
        begin = int(ends[first] - lengths[first])
        sizes = pieces.sizes[ids[begin : ends[last - 1]]]
        given = np.add.reduceat(sizes, ends[first:last] - lengths[first:last] - begin)
        back = pieces.text(ids[begin : ends[last - 1]])
        starts = np.cumsum(given) - given
        for index in range(last - first):
            theirs = data[offsets[first + index] : offsets[first + index + 1]]
            changed[first + index] = not np.array_equal(back[starts[index] : starts[index] + given[index]], theirs)
    return changed


def id_type(vocab_size: int) -> type:
    """Returns the smallest type that holds every id."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def loaded(tokenizer: Path) -> tuple[Encoder, TokenBytes]:
    """Loads a tokenizer, once a process."""
    return _loaded(tokenizer, (tokenizer / "tokenizer.json").stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _loaded(tokenizer: Path, written: int) -> tuple[Encoder, TokenBytes]:
    made = load_tokenizer(tokenizer)
    return Encoder(made, tokenizer_meta(tokenizer)["eos_id"]), TokenBytes(made)
