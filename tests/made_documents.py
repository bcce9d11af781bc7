"""A small data/documents/ for tests: three domains of made-up text that still repeats itself as language does."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pico.config import Cleaning, Packing, Tokenizer
from pico.files import write_json

BPE = Tokenizer(kind="bpe", vocab_size=300)


def packing(**changes) -> Packing:
    values = {
        "seq_len": 16, "heldout_fraction": 0.1, "heldout_rows": 6, "rows_per_shard": 50, "seed": 1,
        "tokenizer_sample_bytes": 20_000, "max_domain_bytes": None, "mixture": None, "max_repetitions": 1.0,
        "tinsy_rows": 2,
    }  # fmt: skip
    return Packing(**(values | changes))


def cleaning(**changes) -> Cleaning:
    """As it is shipped."""
    values = {
        "unicode": "NFC", "verbatim_domains": ["code"], "min_document_bytes": 1, "max_document_bytes": 5_000_000,
        "max_control_fraction": 0.02, "min_letter_fraction": 0.2, "near_duplicates": "drop", "similarity": 0.8,
        "shingle_words": 5, "permutations": 128, "languages": None, "redact": [], "phone_region": "US",
    }  # fmt: skip
    return Cleaning(**(values | changes))


def plain(**changes) -> Cleaning:
    """Nothing is cleaned."""
    values = {"unicode": "none", "max_control_fraction": 1.0, "min_letter_fraction": 0.0, "near_duplicates": "ignore"}
    return cleaning(**(values | changes))


def made_up(n: int, seed: int, words: int = 40) -> list[str]:
    """`n` distinct documents of words drawn from a small vocabulary, with some text beyond ASCII."""
    random = np.random.default_rng(seed)
    lexicon = ["".join(random.choice(list("aeiourstlnm"), random.integers(2, 7))) for _ in range(200)] + ["é€", "日本"]
    return [f"{seed}-{k} " + " ".join(random.choice(lexicon, random.integers(3, words))) for k in range(n)]


def write_documents(folder: Path, texts: Mapping[str, tuple[str, Sequence[str]]], *, row_group: int = 40) -> Path:
    """Writes `<source>.parquet` for each `source: (domain, texts)`, and sources.json, as stage `fetch` does."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for source, (domain, own) in texts.items():
        table = pa.table(
            {
                "id": [hashlib.sha256(text.encode()).hexdigest() for text in own],
                "source": [source] * len(own),
                "domain": [domain] * len(own),
                "text": pa.array(list(own), pa.string()),
            }
        )
        pq.write_table(table, folder / f"{source}.parquet", row_group_size=row_group)
        size = sum(len(text.encode()) for text in own)
        entries.append({"name": source, "domain": domain, "licence": "CC0-1.0", "kind": "files", "pin": "",
                        "documents": len(own), "bytes": size})  # fmt: skip
    write_json(folder / "sources.json", entries)
    return folder


def small_corpus(folder: Path) -> Path:
    """Two sources of prose and one of verse; each holds documents that the others hold too."""
    prose, more, verse = made_up(120, 1), made_up(60, 2), made_up(90, 3)
    return write_documents(
        folder,
        {"novels": ("prose", [*prose, prose[3]]), "essays": ("prose", [*more, prose[5]]), "odes": ("verse", verse)},
    )
