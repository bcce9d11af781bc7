"""Tokenizers: load them, count bytes, turn ids back into text.

A document never yields the EOS token by its text: `<|endoftext|>` written in a document is encoded as ordinary
characters, so EOS in the shards always is the end of a document. (`tokenizers` does not keep that switch in
tokenizer.json; `load_tokenizer` sets it.)
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from pico.files import read_json

EOS = "<|endoftext|>"
"""Ends every document; id 0 in a trained tokenizer."""

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Cuts text into words before bytes are merged, as Qwen2 does."""


def load_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """Loads the tokenizer of `data/tokens/tokenizer/`. Special tokens written out in a text are not parsed."""
    path = Path(folder) / "tokenizer.json"
    json_text = json.dumps(read_json(path))  # names a missing or broken file
    return plain_text_only(tokenizers.Tokenizer.from_str(json_text))


def tokenizer_meta(folder: Path) -> dict[str, Any]:
    """Reads meta.json: `kind`, `vocab_size`, `eos_token`, `eos_id`."""
    return read_json(Path(folder) / "meta.json")


def token_bytes(tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """Returns the UTF-8 bytes of text that each id stands for: int64, (vocab_size,); special tokens stand for none."""
    return TokenBytes(tokenizer).sizes


def target_bytes(rows: np.ndarray, bytes_of_token: np.ndarray) -> np.ndarray:
    """Counts the UTF-8 bytes of the targets (all but the first id) of each row: int64, (rows,)."""
    return bytes_of_token[rows[:, 1:]].sum(axis=1, dtype=np.int64)


class TokenBytes:
    """The UTF-8 bytes that each id stands for: what a byte-level tokenizer is, read backwards."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        values = {letter: byte for byte, letter in enumerate(byte_letters())}
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
        """Returns the bytes of all ids, one after another: uint8."""
        sizes = self.sizes[ids]
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if len(ends) else 0
        return self._flat[np.repeat(self._starts[ids] - ends + sizes, sizes) + np.arange(total)]


def spelled(ids: np.ndarray, pieces: TokenBytes, eos: int, mark: str) -> str:
    """Returns the text of some ids, `mark` between documents; a character cut in two is a replacement character."""
    ends = np.flatnonzero(ids[:-1] == eos) + 1
    return mark.join(pieces.text(part).tobytes().decode(errors="replace") for part in np.split(ids, ends))


def plain_text_only(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Makes the tokenizer encode special tokens that are written out in a text as ordinary text. Returns it."""
    tokenizer.encode_special_tokens = True  # in `tokenizers`, True means: as if they were ordinary text
    return tokenizer


def byte_letters() -> list[str]:
    """Returns GPT-2's letter for each byte: itself where it is printable Latin-1, the rest follow from U+0100."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in kept]
    letters = {byte: chr(byte) for byte in kept} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]
