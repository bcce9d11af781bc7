"""Makes the tokenizer: a byte-level BPE trained on a sample of the training documents, or a pretrained one."""

import base64
import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from pico.config import Tokenizer
from pico.data.preparation.blocks import Block, Store, block_numbers
from pico.data.tokens.documents import Use
from pico.data.tokens.tokenizer import EOS, QWEN2_PATTERN, byte_letters, plain_text_only
from pico.errors import PicoError
from pico.files import write_atomic, write_json
from pico.spread import release_memory

QWEN2_SPECIAL = (EOS, "<|im_start|>", "<|im_end|>")
"""The three entries that follow the merges of a Qwen2 vocabulary, as in Qwen2-1.5B (151,646 entries)."""


def make_tokenizer(
    folder: Path,
    documents: Path,
    store: Store,
    blocks: Sequence[Block],
    uses: Path | None,
    settings: Tokenizer,
    sample_bytes: int,
    vocab_size: int,
) -> None:
    """Writes to `folder` the tokenizer that `settings` ask for.

    A trained one sees a sample of the training documents, which the file `uses` marks. `vocab_size`: entries of the
    models' embedding. Raises PicoError where the tokenizer has more.
    """
    if settings.pretrained is not None:
        eos = settings.pretrained.eos_token
        made = pretrained(documents / "tokenizer", settings.vocab_size, eos)
    else:
        assert uses is not None
        eos = EOS
        made = train_bpe(sample_texts(store, blocks, uses, sample_bytes), settings.vocab_size)
    if made.get_vocab_size() > vocab_size:
        raise PicoError(
            f"the tokenizer has {made.get_vocab_size()} entries, the models' embedding only {vocab_size}",
            where=f"params.yaml: model.vocab_size = {vocab_size}",
            mend="raise model.vocab_size",
        )
    save_tokenizer(made, folder, kind=settings.kind, eos_token=eos)
    release_memory()  # of the words that were counted


def sample_texts(store: Store, blocks: Sequence[Block], uses: Path, sample_bytes: int) -> list[str]:
    """Returns training texts of `sample_bytes` in all, each domain's share that of its bytes.

    Within a domain the lowest ids come first: hashes, so a random sample, and the same whatever the order of sources.
    """
    train = np.memmap(uses, np.uint8, "r") == Use.TRAIN
    sizes: dict[str, int] = {}
    for block in blocks:
        path = store.file("clean", block.number)
        own = pq.read_table(path, columns=["doc", "n_bytes"]) if path.exists() else None
        size = int(own["n_bytes"].to_numpy()[train[own["doc"].to_numpy()]].sum()) if own else 0
        sizes[block.domain] = sizes.get(block.domain, 0) + size
    total = sum(sizes.values())
    domains = sorted(sizes)
    domain_of = np.array([domains.index(block.domain) for block in blocks])
    budgets = np.array([-(-sample_bytes * sizes[domain] // total) if total else 0 for domain in domains])
    chosen: dict[int, dict[int, int]] = {}  # block -> document -> bytes
    for batch in store.sorted("clean", "doc, n_bytes", "hi, lo, doc"):
        owner = block_numbers(blocks, batch["doc"])
        for index in np.flatnonzero(train[batch["doc"]] & (budgets[domain_of[owner]] > 0)).tolist():
            number, domain = int(owner[index]), domain_of[owner[index]]
            if budgets[domain] > 0:
                size = min(int(budgets[domain]), int(batch["n_bytes"][index]))
                chosen.setdefault(number, {})[int(batch["doc"][index])] = size
                budgets[domain] -= size
        if (budgets <= 0).all():
            break
    texts = []
    for number in sorted(chosen):
        table = pq.read_table(store.file("clean", number), columns=["doc", "text"])
        wanted = table.filter(pc.is_in(table["doc"], pa.array(sorted(chosen[number]))))
        for document, text in zip(wanted["doc"].to_pylist(), wanted["text"].to_pylist(), strict=True):
            texts.append(text.encode()[: chosen[number][document]].decode(errors="ignore"))
    return texts


def train_bpe(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Trains a byte-level BPE (GPT-2's scheme) of at most `vocab_size` entries: EOS, the 256 bytes, then merges.

    The result depends on the texts alone, not on their order or on threads. Raises PicoError where `vocab_size` cannot
    hold every byte.
    """
    if vocab_size < 257:
        raise PicoError(
            f"a byte-level tokenizer of {vocab_size} entries cannot hold the 256 bytes and {EOS}",
            where=f"params.yaml: tokenizer.vocab_size = {vocab_size}",
            mend="set tokenizer.vocab_size (and model.vocab_size) to at least 257",
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return plain_text_only(tokenizer)


def pretrained(folder: Path, vocab_size: int, eos_token: str) -> tokenizers.Tokenizer:
    """Loads the tokenizer whose file lies in `folder`: a tokenizer.json (under any name) or a Qwen2 `.tiktoken`.

    Raises PicoError where there is none, or where its entries or its EOS are not those that the settings name.
    """
    files = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    if len(files) != 1:
        raise PicoError(
            f"{folder} holds {len(files)} files, not the one of a pretrained tokenizer", mend="run: dvc repro fetch"
        )
    file = files[0]
    try:
        if file.suffix == ".tiktoken":
            tokenizer = from_tiktoken(file.read_bytes())
        else:
            tokenizer = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except PicoError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise PicoError(
            f"{file} cannot be read as a tokenizer: {error}",
            mend="name a tokenizer.json or a .tiktoken file in tokenizer.pretrained.member",
        ) from error
    check(tokenizer, vocab_size, eos_token, where=str(file))
    return plain_text_only(tokenizer)


def check(tokenizer: tokenizers.Tokenizer, vocab_size: int, eos_token: str, *, where: str) -> None:
    """Raises PicoError unless it is byte-level, ids are 0 to `vocab_size` - 1, and `eos_token` is a special token."""
    decoder = json.loads(tokenizer.to_str())["decoder"]
    if decoder is None or decoder["type"] != "ByteLevel":
        raise PicoError(
            f"the tokenizer is not byte-level (its decoder is {decoder and decoder['type']}): bits per byte need one",
            where=where,
            mend="name another tokenizer in tokenizer.pretrained",
        )
    vocabulary = tokenizer.get_vocab()
    if sorted(vocabulary.values()) != list(range(vocab_size)):
        raise PicoError(
            f"the tokenizer has {len(vocabulary)} entries with ids up to {max(vocabulary.values(), default=-1)}, "
            f"not {vocab_size} with ids up to {vocab_size - 1}",
            where=where,
            mend="set tokenizer.vocab_size to what it has, and model.vocab_size to at least that",
        )
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    if eos_token not in special:
        raise PicoError(
            f"{eos_token!r} is not a special token of the tokenizer; it has {sorted(special)}",
            where=where,
            mend="name one of these in tokenizer.pretrained.eos_token",
        )


def from_tiktoken(data: bytes) -> tokenizers.Tokenizer:
    """Makes a byte-level BPE with Qwen2's word pattern and special tokens of its vocabulary (`base64 rank` a line).

    The merges follow from the ranks: an entry is the merge of the two parts that its own bytes come to when only
    earlier entries are used. Unlike Qwen2's file there is no NFC normalisation, so that the round trip is exact; text
    that is in NFC, as nearly all is, gets the same ids.
    """
    try:
        pairs = [line.split() for line in data.splitlines() if line.strip()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except ValueError as error:
        raise PicoError(f"not a .tiktoken file: {error}", mend="each line is a base64 token and its rank") from error
    letters = byte_letters()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges: list[tuple[str, str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) > 1:
            left, right = _parts(token, ranks)
            merges.append((spell(left), spell(right)))
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={spell(t): r for t, r in ranks.items()}, merges=merges))
    words = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in QWEN2_SPECIAL])
    return tokenizer


def save_tokenizer(tokenizer: tokenizers.Tokenizer, folder: Path, *, kind: str, eos_token: str) -> dict[str, Any]:
    """Writes tokenizer.json and meta.json. Returns the latter: kind, vocab_size, eos_token, eos_id."""
    meta = {
        "kind": kind,
        "vocab_size": tokenizer.get_vocab_size(),
        "eos_token": eos_token,
        "eos_id": tokenizer.token_to_id(eos_token),
    }
    write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    write_json(folder / "meta.json", meta)
    return meta


def _parts(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    limit, parts = ranks[token], [bytes([byte]) for byte in token]
    while len(parts) > 2:
        found = [ranks.get(left + right, limit) for left, right in pairwise(parts)]
        best = min(found)
        if best >= limit:
            raise PicoError(f"entry {limit} of the .tiktoken file is not a merge of earlier entries")
        at = found.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
