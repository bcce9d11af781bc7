"""The gates: every rule on documents and on tokens, with its limit and the setting that sets it.

A gate is an expectation of Great Expectations about one column of one table. Those of one table stand together;
`params` is the `gates` section of params.yaml.
"""

from dataclasses import dataclass
from typing import Any

from pico.config import Gates

DOCUMENTS, TOKENS, SHARDS, ROWS = "data/documents", "data/tokens", "data/tokens/train", "data/tokens/heldout"
"""The folders that gates are about."""
IN_SET = "ExpectColumnValuesToBeInSet"


@dataclass(frozen=True)
class Gate:
    """One rule about one column of one table."""

    name: str
    """The suite and the rule: `documents.length`."""
    rule: str
    where: str
    """The folder that it is about."""
    expectation: str
    """The class in great_expectations.expectations."""
    arguments: dict[str, Any]
    limit: Any
    param: str = ""
    """The setting that sets the limit; empty where the format does."""
    shows: str = "failures"
    """The value that is reported: `min`, `max` or `range` of the column, its `values`, or the number of `failures`."""

    @property
    def column(self) -> str:
        return self.arguments["column"]


def between(
    name: str, rule: str, column: str, low: Any, high: Any, param: str = "", *, where: str, shows: str = ""
) -> Gate:
    """Returns a gate that every value of a column lies between limits, either of which may be None."""
    limit = low if high is None or low == high else high if low is None else [low, high]
    shows = shows or ("min" if high is None else "max" if low is None else "range")
    arguments = {"column": column, "min_value": low, "max_value": high}
    return Gate(name, rule, where, "ExpectColumnValuesToBeBetween", arguments, limit, param, shows)


def only(name: str, rule: str, column: str, value: Any, *, where: str) -> Gate:
    """Returns a gate that every value of a column is this one."""
    return Gate(name, rule, where, IN_SET, {"column": column, "value_set": [value]}, 0)


def schema(name: str, columns: str, where: str) -> Gate:
    """Returns a gate that every file has these columns, of these types."""
    rule = f"columns and types of {where}"
    return Gate(name, rule, where, IN_SET, {"column": "columns", "value_set": [columns]}, columns, shows="values")


ROW_FILES = [
    schema("documents.schema", "id: string, source: string, domain: string, file: string, row: int64, "
           "input_ids: list<int32>", DOCUMENTS)
]  # fmt: skip
"""In place of DOCUMENT_FILES where the corpus is rows of ids."""
NOT_OF_ROWS = {
    ("documents.length", "bytes"): "all rows have one length",
    ("documents.mean_length", "mean_bytes"): "all rows have one length",
    ("documents.near_duplicates", "near_duplicates_fraction"): "rows are parts of documents cut elsewhere",
    ("documents.heldout_near_duplicates", "heldout_near_duplicates_fraction"):
        "rows are parts of documents cut elsewhere, and held out one by one",
    ("tokens.eos", "empty_documents"): "documents were joined elsewhere",
    ("tokens.overlap", "documents_in_training"): "rows are held out one by one, not documents",
}  # fmt: skip
"""Gates (name, column) that cannot be asked of a corpus of rows, and why."""
DOCUMENT_FILES = [schema("documents.schema", "id: string, source: string, domain: string, text: string", DOCUMENTS)]
SHARD_FILES = [schema("tokens.schema", "input_ids: list<int32>", SHARDS)]
HELDOUT_FILES = [schema("tokens.schema", "input_ids: list<int32>, n_bytes: int64", ROWS)]


def fetched(params: Gates) -> list[Gate]:
    """Returns the gates about each domain as it was fetched."""
    return [
        between("documents.domains", "fetched documents of a domain", "documents", params.min_domain_documents, None,
                "gates.min_domain_documents", where=DOCUMENTS)
    ]  # fmt: skip


def single_documents(params: Gates) -> list[Gate]:
    """Returns the gates about each document; those on length and characters are about the documents that are used."""
    lacks = (("id", "id"), ("source", "source"), ("domain", "domain"), ("text_bytes", "text"))
    return [
        *(Gate("documents.nulls", f"no document lacks its {what}", DOCUMENTS, "ExpectColumnValuesToNotBeNull",
               {"column": column}, 0) for column, what in lacks),
        only("documents.identity", "every id is the sha256 of its text, or of its token ids", "id_is_hash", True,
             where=DOCUMENTS),
        between("documents.length", "bytes of the shortest document that is used", "bytes", params.min_document_bytes,
                None, "gates.min_document_bytes", where=DOCUMENTS),
        between("documents.length", "bytes of the longest document that is used", "bytes", None,
                params.max_document_bytes, "gates.max_document_bytes", where=DOCUMENTS),
        between("documents.characters", "largest share of control and replacement characters in a document that is "
                "used", "control", None, params.max_control_fraction, "gates.max_control_fraction", where=DOCUMENTS),
    ]  # fmt: skip


def heldout_documents(params: Gates) -> list[Gate]:
    """Returns the gates about each held-out document."""
    return [
        between("documents.heldout_overlap", f"largest share of a held-out document's {params.ngram_words}-grams that "
                "training documents hold", "overlap", None, params.max_heldout_overlap, "gates.max_heldout_overlap",
                where=DOCUMENTS)
    ]  # fmt: skip


def document_domains(params: Gates) -> list[Gate]:
    """Returns the gates about the used documents of each domain."""
    alike = f"a near-duplicate (estimated Jaccard similarity of word 5-grams of {params.near_duplicate_similarity} up)"
    return [
        between("documents.mean_length", "mean bytes of a domain's documents", "mean_bytes",
                params.min_mean_document_bytes, None, "gates.min_mean_document_bytes", where=DOCUMENTS),
        between("documents.near_duplicates", f"largest share of a domain's training documents with {alike} among "
                "training documents", "near_duplicates_fraction", None, params.max_near_duplicate_fraction,
                "gates.max_near_duplicate_fraction", where=DOCUMENTS),
        between("documents.heldout_near_duplicates", f"largest share of a domain's held-out documents with {alike} "
                "among training documents", "heldout_near_duplicates_fraction", None,
                params.max_heldout_near_duplicate_fraction, "gates.max_heldout_near_duplicate_fraction",
                where=DOCUMENTS),
        between("documents.heldout_domain_overlap", f"largest share of a domain's held-out {params.ngram_words}-grams "
                "that training documents hold", "overlap", None, params.max_heldout_domain_overlap,
                "gates.max_heldout_domain_overlap", where=DOCUMENTS),
    ]  # fmt: skip


def benchmarks(params: Gates) -> list[Gate]:
    """Returns the gates about each benchmark."""
    return [
        between("documents.contamination", f"largest share of a benchmark's examples of which a training document "
                f"holds a {params.ngram_words}-gram", "fraction", None, params.max_contaminated_fraction,
                "gates.max_contaminated_fraction", where=DOCUMENTS)
    ]  # fmt: skip


def corpus(params: Gates, total: dict[str, Any]) -> list[Gate]:
    """Returns the gates about all documents together. total: that of provenance.json."""
    return [
        between("documents.count", "documents that are used", "used_documents", params.min_documents, None,
                "gates.min_documents", where=DOCUMENTS),
        between("documents.counted", "documents that are there are those that were read", "fetched_documents",
                total["documents_read"], total["documents_read"], where=DOCUMENTS),
        between("documents.duplicates", "documents of the same text as another that is used", "duplicates", None, 0,
                where=DOCUMENTS),
    ]  # fmt: skip


def rows(seq_len: int, entries: int) -> list[Gate]:
    """Returns the gates about each row of tokens. entries: those that tokenizer and embedding both have."""
    return [
        between("tokens.row_length", "ids in every row: seq_len + 1", "length", seq_len + 1, seq_len + 1,
                "packing.seq_len", where=TOKENS, shows="range"),
        between("tokens.range", "the lowest id", "lowest", 0, None, where=TOKENS),
        between("tokens.range", "the highest id has an entry", "highest", None, entries - 1, "model.vocab_size",
                where=TOKENS),
        between("tokens.eos", "documents of no text (two EOS in a row) in a row", "empty_documents", None, 0,
                where=TOKENS),
    ]  # fmt: skip


def heldout_rows() -> list[Gate]:
    """Returns the gates about each held-out row."""
    return [
        between("tokens.overlap", "held-out documents that are training documents, in a held-out row",
                "documents_in_training", None, 0, where=ROWS),
        only("tokens.overlap", "held-out rows that are training rows", "in_training", False, where=ROWS),
        between("tokens.heldout_bytes", "n_bytes less the bytes of the row's targets", "bytes_off", 0, 0, where=ROWS),
    ]  # fmt: skip


def token_domains(params: Gates) -> list[Gate]:
    """Returns the gates about each domain's share of the tokens."""
    return [
        between("tokens.domain_mix", "least share of a domain in the training tokens", "train_fraction",
                params.min_domain_fraction, None, "gates.min_domain_fraction", where=TOKENS),
        between("tokens.domain_mix", "largest share of a domain in the training tokens", "train_fraction", None,
                params.max_domain_fraction, "gates.max_domain_fraction", where=TOKENS),
        between("tokens.heldout_rows", "held-out rows of a domain", "heldout_rows", params.min_heldout_rows, None,
                "gates.min_heldout_rows", where=ROWS),
    ]  # fmt: skip


def tokens(params: Gates, total: dict[str, Any], of_rows: bool = False) -> list[Gate]:
    """Returns the gates about all training rows. total: that of provenance.json; of_rows: the corpus is rows of ids."""
    if of_rows:
        rule, ended = "EOS in the training rows are those that were counted", total["train_eos"]
    else:
        rule = "EOS in the training rows: one for each document that ends in them"
        ended = total["seen_documents"] - total["tail_documents_dropped"]
    return [
        between("tokens.train_rows", "training rows", "train_rows", params.min_train_rows, None,
                "gates.min_train_rows", where=SHARDS),
        between("tokens.counted", "training rows are those that were counted", "train_rows", total["train_rows"],
                total["train_rows"], where=SHARDS),
        between("tokens.eos", rule, "train_eos", ended, ended, where=SHARDS),
    ]  # fmt: skip
