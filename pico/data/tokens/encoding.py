"""Texts to ids, fast: each distinct piece of text is encoded once, and the ids of all are gathered with numpy.

A byte-level tokenizer first cuts text into words by a pattern, and then merges the bytes of each word by itself. Where
no word can reach across two neighbouring bytes, text may be cut before it is encoded, and the ids are the same. The
pieces repeat as words do: 16 MB of English have 3 million pieces, of which one in 20 is distinct.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers

from pico.data.tokens.tokenizer import QWEN2_PATTERN

PIECES = 2**14
"""Distinct pieces that are encoded at a time: an Encoding takes a hundred times the memory of its ids."""
AT_ONCE = 2**18
"""Pieces whose ids are gathered at a time."""
WHOLE = 2**20
"""Bytes of texts that are encoded at a time where they may not be cut."""
SCANNED = 2**20
"""Bytes that are searched for cuts at a time."""


class Encoder:
    """A tokenizer, and where texts may be cut for it."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, eos_id: int) -> None:
        self.tokenizer, self.eos_id = tokenizer, eos_id
        self.cuts = cuts(tokenizer)
        """The pairs of bytes between which text may be cut: bool (65536,), at 256 * left + right; None if not known."""

    def encode(self, texts: pa.Array | pa.ChunkedArray | Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids of all texts in one int32 array, EOS after each text, and int64 lengths (EOS counted)."""
        if isinstance(texts, pa.ChunkedArray):
            texts = texts.combine_chunks()
        texts = texts.cast(pa.large_string()) if isinstance(texts, pa.Array) else pa.array(texts, pa.large_string())
        if not len(texts):
            return np.zeros(0, np.int32), np.zeros(0, np.int64)
        return self._whole(texts) if self.cuts is None else self._cut(texts, self.cuts)

    def _whole(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        parts: list[np.ndarray] = []
        for first, end in spans(pc.binary_length(texts).to_numpy(), WHOLE):
            batch = texts[first:end].to_pylist()
            for encoding in self.tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                parts.append(np.array([*encoding.ids, self.eos_id], np.int32))
        return np.concatenate(parts), np.fromiter(map(len, parts), np.int64, len(parts))

    def _cut(self, texts: pa.Array, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encodes piece by piece. EOS is a piece of its own, of no bytes."""
        ends = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
        data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)[ends[0] : ends[-1]]
        ends = ends - ends[0]
        edges = _edges(data, ends, cuts)
        buffers = [None, pa.py_buffer(edges), pa.py_buffer(data)]
        pieces = pa.Array.from_buffers(pa.large_string(), len(edges) - 1, buffers).dictionary_encode()
        last = np.searchsorted(edges, ends[1:])  # how many pieces stand before the end of each text
        del edges, buffers
        codes = np.insert(pieces.indices.to_numpy(), last, len(pieces.dictionary))
        ids, sizes = self._distinct(pieces.dictionary)
        del pieces
        starts = np.cumsum(sizes) - sizes
        firsts = np.concatenate([[0], last[:-1]]) + np.arange(len(last))  # of each text, which ends with an EOS
        lengths = np.add.reduceat(sizes.astype(np.int32)[codes], firsts, dtype=np.int64)
        found = np.empty(int(lengths.sum()), np.int32)
        done = 0
        for first in range(0, len(codes), AT_ONCE):
            own = codes[first : first + AT_ONCE]
            stops = np.cumsum(sizes[own])
            from_start = np.repeat(starts[own] - stops + sizes[own], sizes[own]) + np.arange(stops[-1])
            found[done : done + stops[-1]] = ids[from_start]
            done += int(stops[-1])
        return found, lengths

    def _distinct(self, pieces: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids of all pieces one after another, EOS last: int32; and how many each has: int64."""
        parts, sizes = [], []
        for first in range(0, len(pieces), PIECES):
            batch = pieces[first : first + PIECES].to_pylist()
            lists = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
            sizes.append(np.fromiter(map(len, lists), np.int64, len(lists)))
            parts.append(np.fromiter(chain.from_iterable(lists), np.int32, int(sizes[-1].sum())))
        return np.concatenate([*parts, [self.eos_id]]).astype(np.int32), np.concatenate([*sizes, [1]]).astype(np.int64)


def cuts(tokenizer: tokenizers.Tokenizer) -> np.ndarray | None:
    """Returns the pairs of bytes between which text may be cut and keeps its ids: bool (65536,), at 256 * left + right.

    Returns None for tokenizers whose pattern is not one of those looked into: GPT-2's and Qwen2's. In both, words of
    letters and words of digits end where anything else in ASCII follows, and no word holds a space but as its first
    character or among white space. GPT-2's words besides have no white space after anything else.
    """
    state: dict[str, Any] = json.loads(tokenizer.to_str())
    if state["normalizer"] not in (None, {"type": "NFC"}) or state["truncation"] or state["padding"]:
        return None
    if state["model"].get("dropout"):
        return None
    found = _cuts_of_pattern(state["pre_tokenizer"])
    if found is None:
        return None
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.special:  # encoded as ordinary text
            continue
        if token.lstrip or token.rstrip or token.single_word:
            return None
        data = np.frombuffer(token.content.encode(), np.uint8).astype(np.int64)
        found[256 * data[:-1] + data[1:]] = False  # it's looked for before words are
    return found


def _cuts_of_pattern(pattern: dict[str, Any] | None) -> np.ndarray | None:
    pattern = pattern or {}
    byte_level = pattern if pattern.get("type") == "ByteLevel" else (pattern.get("pretokenizers") or [{}])[-1]
    if byte_level.get("type") != "ByteLevel" or byte_level["add_prefix_space"]:
        return None
    gpt2 = byte_level is pattern and pattern["use_regex"]
    qwen2 = not gpt2 and _is_qwen2(pattern.get("pretokenizers") or [])
    if not gpt2 and not qwen2:
        return None
    codes = np.arange(256)
    digit = (codes >= ord("0")) & (codes <= ord("9"))
    letter = ((codes | 32) >= ord("a")) & ((codes | 32) <= ord("z")) & (codes < 128)
    graphic = (codes > 32) & (codes < 127)
    space = np.isin(codes, [9, 10, 13, 32])
    other = (graphic | space) & ~digit & ~letter
    found = (letter[:, None] & (other | digit)) | (digit[:, None] & (other | letter))
    found |= graphic[:, None] & (codes == 32)
    if gpt2:
        found |= graphic[:, None] & space
    return found.reshape(-1)


def _is_qwen2(steps: Sequence[dict[str, Any]]) -> bool:
    if len(steps) != 2 or steps[0].get("type") != "Split" or steps[1].get("use_regex"):
        return False
    split = steps[0]
    return split["pattern"] == {"Regex": QWEN2_PATTERN} and split["behavior"] == "Isolated" and not split["invert"]


def _edges(data: np.ndarray, ends: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Returns the places where pieces begin, and where the last one ends: int64, ascending."""
    edge = np.zeros(len(data) + 1, bool)
    for first in range(0, len(data) - 1, SCANNED):
        own = data[first : first + SCANNED + 1]
        pairs = own[:-1].astype(np.uint16) << np.uint16(8) | own[1:]
        edge[first + 1 : first + len(own)] = cuts[pairs]
    edge[ends] = True
    return np.flatnonzero(edge)


def spans(sizes: np.ndarray, most: int, longest: int | None = None) -> Iterator[tuple[int, int]]:
    """Yields (first, end) of neighbours that come to at most `most` and are at most `longest`, or are a single one."""
    ends = np.cumsum(sizes)
    first = 0
    while first < len(ends):
        end = int(np.searchsorted(ends, ends[first] - sizes[first] + most, side="right"))
        end = max(first + 1, end if longest is None else min(end, first + longest))
        yield first, end
        first = end
