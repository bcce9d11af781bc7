"""The tokenizer files of an exported folder, for `AutoTokenizer.from_pretrained`, and held-out rows to check with."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from pico.errors import PicoError
from pico.files import read_json, write_atomic, write_json


def write_tokenizer(folder: Path, source: Path, *, max_seq_len: int) -> dict[str, Any]:
    """Copies tokenizer.json from `source` (`data/tokens/tokenizer`) and writes the settings that transformers reads.

    Every document of the corpus is followed by EOS, so EOS is also what stands before a document: it serves as BOS,
    and as padding, which the attention mask hides. BOS is not added by itself: training rows begin anywhere.
    Returns meta.json. Raises PicoError where tokenizer.json does not hold the EOS that meta.json names.
    """
    meta = read_json(source / "meta.json")
    text = (source / "tokenizer.json").read_text(encoding="utf-8")
    eos, eos_id = meta["eos_token"], meta["eos_id"]
    if _id_of(json.loads(text), eos) != eos_id:
        raise PicoError(
            f"the tokenizer does not hold {eos!r} as entry {eos_id}",
            where=str(source),
            mend="make it again: dvc repro --force --single-item prepare",
        )
    write_atomic(folder / "tokenizer.json", text)
    special = {"bos_token": eos, "eos_token": eos, "pad_token": eos}
    settings = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_seq_len,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(folder / "tokenizer_config.json", settings | special)
    write_json(folder / "special_tokens_map.json", special)
    return meta


def _id_of(tokenizer: dict[str, Any], token: str) -> int | None:
    """Returns the id of `token` among the added tokens or the vocabulary of a tokenizer.json."""
    added = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])}
    vocabulary = tokenizer["model"].get("vocab", {})
    return added.get(token, vocabulary.get(token) if isinstance(vocabulary, dict) else None)


def heldout_rows(tokens: Path, per_domain: int) -> Tensor:
    """Returns the first `per_domain` held-out rows of each domain of `data/tokens/`: (rows, seq_len + 1) int64."""
    rows: list[list[int]] = []
    for file in sorted((tokens / "heldout").glob("*.parquet")):
        batch = next(pq.ParquetFile(file).iter_batches(per_domain, columns=["input_ids"]), None)
        rows += batch.column("input_ids").to_pylist() if batch is not None else []
    if not rows:
        raise PicoError(
            "there are no held-out rows to check the export with",
            where=str(tokens / "heldout"),
            mend="raise packing.heldout_fraction, then: dvc repro",
        )
    return torch.tensor(rows, dtype=torch.int64)
