"""Preparation with the settings of the tests, and what it left."""

import hashlib

import numpy as np
import pyarrow.parquet as pq
from made_documents import BPE, cleaning, packing

from pico.data.preparation.pipeline import prepare as prepare_at
from pico.data.tokens.loader import TokenRows


def prepare(documents, target, **changes):
    """With the settings of the tests, and the working folder beside the target."""
    values = {"tokenizer": BPE, "cleaning": cleaning(), "packing": packing(), "vocab_size": 300}
    return prepare_at(documents, target, runs=target.parent / "runs", **(values | changes))


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def all_training_rows(tokens):
    rows = TokenRows(tokens / "train")
    return rows.rows(np.arange(rows.n_rows))


def segments(tokens, part="train"):
    """Returns the rows of the sidecar, as a list of dicts."""
    return [
        entry for path in sorted((tokens / f"{part}-provenance").glob("*.parquet"))
        for entry in pq.read_table(path).to_pylist()
    ]  # fmt: skip
