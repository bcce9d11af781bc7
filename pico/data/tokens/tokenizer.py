"""Tokenizers: train a byte-level BPE, or take a pretrained one; save, load, count bytes.

A document never yields the EOS token by its text: `<|endoftext|>` written in a document is encoded as ordinary
characters, so EOS in the shards always is the end of a document. (`tokenizers` does not keep that switch in
tokenizer.json; `load_tokenizer` sets it.)
"""

import base64
import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from pico.errors import PicoError
from pico.files import read_json, write_atomic, write_json

EOS = "<|endoftext|>"
"""Ends every document; id 0 in a trained tokenizer."""

QWEN2_SPECIAL = (EOS, "<|im_start|>", "<|im_end|>")
"""The three entries that follow the merges of a Qwen2 vocabulary, as in Qwen2-1.5B (151,646 entries)."""

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 cuts text into words before merging bytes."""


def train_bpe(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE (GPT-2's scheme) of at most `vocab_size` entries: EOS, the 256 bytes, then merges.

    The result depends on the texts alone, not on their order or on threads. Raises PicoError where `vocab_size` cannot
    hold every byte.
    """
    smallest = 257
    if vocab_size < smallest:
        raise PicoError(
            f"a byte-level tokenizer of {vocab_size} entries cannot hold the 256 bytes and {EOS}",
            where=f"params.yaml: tokenizer.vocab_size = {vocab_size}",
            mend=f"set tokenizer.vocab_size (and model.vocab_size) to at least {smallest}",
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
    return _plain_text_only(tokenizer)


def pretrained(folder: Path, vocab_size: int, eos_token: str) -> tokenizers.Tokenizer:
    """The tokenizer whose file lies in `folder`: a tokenizer.json (under any name) or a `.tiktoken` of the Qwen2 kind.

    Raises PicoError where there is none, or where its entries or its EOS are not those that the settings name.
    """
    files = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    if len(files) != 1:
        raise PicoError(
            f"{folder} holds {len(files)} files, not the one of a pretrained tokenizer", mend="run: dvc repro fetch"
        )
    file = files[0]
    try:
        tokenizer = (
            from_tiktoken(file.read_bytes())
            if file.suffix == ".tiktoken"
            else tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        )
    except PicoError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise PicoError(
            f"{file} cannot be read as a tokenizer: {error}",
            mend="name a tokenizer.json or a .tiktoken file in tokenizer.pretrained.member",
        ) from error
    check(tokenizer, vocab_size, eos_token, where=str(file))
    return _plain_text_only(tokenizer)


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
    """A Qwen2 vocabulary (`base64 rank` a line) as a byte-level BPE with Qwen2's word pattern and special tokens.

    The merges follow from the ranks: an entry is the merge of the two parts that its own bytes come to when only
    earlier entries are used. Unlike Qwen2's file there is no NFC normalisation, so that the round trip is exact; text
    that is in NFC, as nearly all is, gets the same ids.
    """
    try:
        pairs = [line.split() for line in data.splitlines() if line.strip()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except ValueError as error:
        raise PicoError(f"not a .tiktoken file: {error}", mend="each line is a base64 token and its rank") from error
    letters = _byte_letters()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges: list[tuple[str, str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) > 1:
            left, right = _parts(token, ranks)
            merges.append((spell(left), spell(right)))
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={spell(t): r for t, r in ranks.items()}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in QWEN2_SPECIAL])
    return tokenizer


def save_tokenizer(tokenizer: tokenizers.Tokenizer, folder: Path, *, kind: str, eos_token: str) -> dict[str, Any]:
    """Writes tokenizer.json and meta.json; gives the latter: kind, vocab_size, eos_token, eos_id."""
    meta = {
        "kind": kind,
        "vocab_size": tokenizer.get_vocab_size(),
        "eos_token": eos_token,
        "eos_id": tokenizer.token_to_id(eos_token),
    }
    write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    write_json(folder / "meta.json", meta)
    return meta


def load_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of `data/tokens/tokenizer/`. Special tokens written out in a text are not parsed."""
    path = Path(folder) / "tokenizer.json"
    json_text = json.dumps(read_json(path))  # names a missing or broken file
    return _plain_text_only(tokenizers.Tokenizer.from_str(json_text))


def tokenizer_meta(folder: Path) -> dict[str, Any]:
    """meta.json: `kind`, `vocab_size`, `eos_token`, `eos_id`."""
    return read_json(Path(folder) / "meta.json")


def token_bytes(tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """How many UTF-8 bytes of text each id stands for: int64, (vocab_size,); special tokens stand for none."""
    return TokenBytes(tokenizer).sizes


class TokenBytes:
    """The UTF-8 bytes that each id stands for: what a byte-level tokenizer is, read backwards."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        values = {letter: byte for byte, letter in enumerate(_byte_letters())}
        pieces = [b""] * tokenizer.get_vocab_size()
        added = tokenizer.get_added_tokens_decoder()
        for token, index in tokenizer.get_vocab().items():
            # A byte-level entry spells each byte as one letter; an added token is kept as the text that it matches.
            if index not in added:
                pieces[index] = bytes(values[letter] for letter in token)
            elif not added[index].special:
                pieces[index] = token.encode()
        self.sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
        """Bytes of each id, int64 (vocab_size,); special tokens stand for none."""
        self._flat = np.frombuffer(b"".join(pieces), np.uint8)
        self._starts = np.cumsum(self.sizes) - self.sizes

    def text(self, ids: np.ndarray) -> np.ndarray:
        """The bytes of all ids, one after another: uint8."""
        sizes = self.sizes[ids]
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if len(ends) else 0
        return self._flat[np.repeat(self._starts[ids] - ends + sizes, sizes) + np.arange(total)]


def spelled(ids: np.ndarray, pieces: TokenBytes, eos: int, mark: str) -> str:
    """The text of some ids, `mark` between documents; a character that was cut in two is a replacement character."""
    ends = np.flatnonzero(ids[:-1] == eos) + 1
    return mark.join(pieces.text(part).tobytes().decode(errors="replace") for part in np.split(ids, ends))


def _plain_text_only(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    tokenizer.encode_special_tokens = True  # in `tokenizers`, True means: as if they were ordinary text
    return tokenizer


def _parts(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two parts of which `token` is the merge."""
    limit, parts = ranks[token], [bytes([byte]) for byte in token]
    while len(parts) > 2:
        found = [ranks.get(left + right, limit) for left, right in pairwise(parts)]
        best = min(found)
        if best >= limit:
            raise PicoError(f"entry {limit} of the .tiktoken file is not a merge of earlier entries")
        at = found.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _byte_letters() -> list[str]:
    """GPT-2's letter for each byte: printable Latin-1 characters stand for themselves, the rest follow from U+0100."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in kept]
    letters = {byte: chr(byte) for byte in kept} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]
