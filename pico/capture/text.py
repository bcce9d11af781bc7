"""The fixed batch that every checkpoint is run on: rows of token ids, cut from a text or read from token shards.

Without a text of the user's, the passages of default_text.json: 33,000 characters of four annual messages to the
Congress of the United States, 1790 to 1941, in the public domain; about 7,000 tokens of a usual tokenizer. They come
with the package, so nothing is fetched.
"""

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from pico.errors import PicoError

Encode = Callable[[str], list[int]]
CHARACTERS_PER_TOKEN = 16
"""More than any tokenizer reaches on prose; of a longer text only the beginning is encoded."""


def default_text() -> str:
    """Returns the passages of default_text.json, one after the other."""
    passages = json.loads((resources.files("pico.capture") / "default_text.json").read_text(encoding="utf-8"))
    return "\n\n".join(one["text"] for one in passages)


def load_encoder(folder: Path) -> Encode:
    """Returns the tokenizer of a folder, as a function from text to ids without special tokens.

    Reads tokenizer.json where there is one, else whatever transformers can read. Raises PicoError where there is none.
    """
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ... for what it cannot read
        raise PicoError(
            f"{folder} holds no tokenizer that can be read",
            mend="name one with --tokenizer FOLDER, or give token ids: --text FILE.parquet with a column input_ids",
        ) from error
    return lambda text: found(text, add_special_tokens=False, verbose=False)["input_ids"]


def batch(text: Path | None, encode: Callable[[], Encode], *, rows: int, seq_len: int, vocab_size: int) -> Tensor:
    """Returns the first rows of `text`, or of the default text: (rows, seq_len + 1) int64.

    text: a UTF-8 file, or a Parquet file with the column `input_ids`, as data/tokens has. encode: gives the tokenizer,
    and is called where there is something to encode. A text is cut into rows without gaps and without special tokens.
    Raises PicoError where there are not so many rows, or where ids are not of the model's vocabulary.
    """
    if text is not None and text.suffix == ".parquet":
        found = _parquet_rows(text, rows, seq_len)
    else:
        found = _text_rows(_read(text) if text else default_text(), encode(), rows, seq_len, text)
    if (largest := int(found.max())) >= vocab_size:
        raise PicoError(
            f"token id {largest} is not in the model's vocabulary of {vocab_size}",
            where=str(text or "the default text"),
            mend="the tokenizer is another model's: name the right one with --tokenizer FOLDER",
        )
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise PicoError(f"{path} cannot be read: {error.strerror}", mend="correct --text") from None
    except UnicodeDecodeError as error:
        raise PicoError(f"{path} is not UTF-8: byte {error.start}", mend="convert it, or name another") from None


def _text_rows(text: str, encode: Encode, rows: int, seq_len: int, path: Path | None) -> Tensor:
    needed = rows * (seq_len + 1)
    ids = encode(text[: needed * CHARACTERS_PER_TOKEN])
    if len(ids) < needed:
        ids = encode(text)
    if len(ids) < needed:
        raise PicoError(
            f"the text has {len(ids)} tokens, but --rows {rows} of {seq_len} positions need {needed}",
            where=str(path or "the default text"),
            mend="give a longer text with --text FILE, or ask for fewer or shorter rows: --rows, --seq-len",
        )
    return torch.tensor(ids[:needed], dtype=torch.int64).view(rows, seq_len + 1)


def _parquet_rows(path: Path, rows: int, seq_len: int) -> Tensor:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = next(pq.ParquetFile(path).iter_batches(rows, columns=["input_ids"])).column("input_ids").to_pylist()
    except (pa.ArrowException, OSError, StopIteration, KeyError) as error:
        raise PicoError(f"{path} has no column input_ids that can be read: {error}", mend="correct --text") from error
    longest = min((len(row) for row in found), default=0)
    if len(found) < rows or longest < seq_len + 1:
        raise PicoError(
            f"{path} begins with {len(found)} rows of {longest} ids; needed are {rows} of {seq_len + 1}",
            mend="ask for fewer or shorter rows: --rows, --seq-len",
        )
    return torch.tensor([row[: seq_len + 1] for row in found], dtype=torch.int64)
