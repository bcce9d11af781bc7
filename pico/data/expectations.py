"""The gates: Great Expectations suites on documents and on tokens. Each names its rule, its limit, and who sets it.

The library is run on an ephemeral context, with analytics, progress bars and Data Docs off; nothing is written.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pico.data import profiles
from pico.errors import PicoError
from pico.files import read_json
from pico.sections import Gates

DOCUMENTS = "id: string, source: string, domain: string, text: string"
SHARDS = "input_ids: list<int32>"
HELDOUT = "input_ids: list<int32>, n_bytes: int64"
WORST = 5
"""Rows shown of those that break a rule."""


@dataclass(frozen=True)
class Gate:
    """One rule about one column of one frame."""

    name: str
    """Of the suite and the rule: `documents.length`."""
    rule: str
    """In words."""
    where: str
    """The folder that it is about."""
    expectation: str
    """The class in great_expectations.expectations."""
    arguments: dict[str, Any]
    limit: Any
    param: str
    """The setting that sets the limit; empty where the format does."""
    observed: Callable[[pd.DataFrame], Any]


def check(documents: Path, tokens: Path, *, gates: Gates, seq_len: int, vocab_size: int) -> list[dict[str, Any]]:
    """Runs every gate on `data/documents/` and `data/tokens/`; gives one dict a gate, in a fixed order.

    Keys: `gate`, `rule`, `where`, `expectation`, `observed`, `limit`, `param`, `passed`, and `failures`: how many rows
    break the rule, and `examples`: the first of them. Where files are not of the right form, only those gates are
    given, because the others cannot be looked at. `vocab_size` is that of the models.
    """
    frames = _frames()
    results = []
    files = {
        "documents.files": (profiles.file_frame(_named(documents), documents), [_schema("documents", DOCUMENTS)]),
        "tokens.shards": (profiles.file_frame(sorted((tokens / "train").glob("*.parquet")), tokens),
                          [_schema("shards", SHARDS)]),
        "tokens.heldout": (profiles.file_frame(sorted((tokens / "heldout").glob("*.parquet")), tokens),
                           [_schema("heldout", HELDOUT)]),
    }  # fmt: skip
    for name, (frame, rules) in files.items():
        results += _validate(frames, name, frame, ["file"], rules)
    if not all(result["passed"] for result in results):
        return results
    provenance = read_json(tokens / "provenance.json")
    document_frame = profiles.document_frame(documents)
    row_frame = profiles.row_frame(tokens)
    domain_frame = profiles.domain_frame(document_frame, row_frame, provenance)
    corpus_frame = profiles.corpus_frame(document_frame, row_frame)
    heldout_frame = row_frame[row_frame["split"] == "heldout"].reset_index(drop=True)

    total = provenance["total"]
    results += _validate(frames, "documents.texts", document_frame, ["source", "row"], _document_gates(gates))
    results += _validate(frames, "documents.domains", domain_frame, ["domain"], _mean_gates(gates))
    results += _validate(frames, "documents.corpus", corpus_frame, [], _count_gates(gates, total))
    results += _validate(
        frames, "tokens.rows", row_frame, ["file", "row"], _row_gates(seq_len, min(vocab_size, _entries(tokens)))
    )
    results += _validate(frames, "tokens.overlap", heldout_frame, ["file", "row"], _overlap_gates())
    results += _validate(frames, "tokens.domains", domain_frame, ["domain"], _mix_gates(gates))
    results += _validate(frames, "tokens.corpus", corpus_frame, [], _total_gates(gates, total))
    return results


def refuse(results: list[dict[str, Any]], details: Path | None = None) -> None:
    """Raises PicoError naming every rule that failed, its rows and its setting; returns where all passed."""
    failed = [result for result in results if not result["passed"]]
    if not failed:
        return
    lines = [f"{len(failed)} of {len(results)} data gates failed; nothing is trained on these data"]
    for result in failed:
        limit = f", limit {result['limit']}" + (f" (params.yaml: {result['param']})" if result["param"] else "")
        lines.append(f"  - {result['gate']}: {result['rule']}: observed {result['observed']}{limit}")
        if result["examples"]:
            shown = "; ".join(", ".join(f"{k}={v}" for k, v in example.items()) for example in result["examples"])
            lines.append(f"      in {result['where']}, {result['failures']} rows, the first: {shown}")
    params = sorted({result["param"] for result in failed if result["param"]})
    mend = "mend the corpus (corpus.sources)" + (f", or change {', '.join(params)} in params.yaml" if params else "")
    raise PicoError("\n".join(lines), where=str(details) if details else "", mend=mend)


def _schema(name: str, columns: str) -> Gate:
    where = {"documents": "data/documents", "shards": "data/tokens/train", "heldout": "data/tokens/heldout"}[name]
    return Gate(f"{'documents' if name == 'documents' else 'tokens'}.schema", f"{name}: columns and types", where,
                "ExpectColumnValuesToBeInSet", {"column": "columns", "value_set": [columns]}, columns, "",
                lambda frame: sorted(set(frame["columns"])) or "no file")  # fmt: skip


def _between(name: str, rule: str, column: str, low: Any, high: Any, param: str, *, where: str = "") -> Gate:
    """Every value of a column lies between limits, either of which may be None; observed: the most extreme value."""
    if low is not None and high is not None and low != high:
        limit: Any = [low, high]
        observed: Callable[[pd.DataFrame], Any] = lambda frame: [frame[column].min(), frame[column].max()]  # noqa: E731
    elif high is None:
        limit, observed = low, lambda frame: frame[column].min()
    elif low is None:
        limit, observed = high, lambda frame: frame[column].max()
    else:
        limit = low
        observed = lambda frame: _one_or_range(frame[column])  # noqa: E731
    return Gate(name, rule, where or f"data/{name.split('.')[0]}", "ExpectColumnValuesToBeBetween",
                {"column": column, "min_value": low, "max_value": high}, limit, param, observed)  # fmt: skip


def _one_or_range(values: pd.Series) -> Any:
    low, high = values.min(), values.max()
    return low if low == high else [low, high]


def _not_null(column: str, what: str) -> Gate:
    return Gate("documents.nulls", f"no document lacks its {what}", "data/documents", "ExpectColumnValuesToNotBeNull",
                {"column": column}, 0, "", lambda frame: int(frame[column].isna().sum()))  # fmt: skip


def _document_gates(gates: Gates) -> list[Gate]:
    return [
        *(_not_null(column, what) for column, what in
          (("id", "id"), ("source", "source"), ("domain", "domain"), ("bytes", "text"))),
        Gate("documents.identity", "every id is the sha256 of its text", "data/documents",
             "ExpectColumnValuesToBeInSet", {"column": "id_is_hash", "value_set": [True]}, 0, "",
             lambda frame: int((~frame["id_is_hash"]).sum())),
        _between("documents.length", "bytes of the shortest document", "bytes", gates.min_document_bytes, None,
                 "gates.min_document_bytes"),
        _between("documents.length", "bytes of the longest document", "bytes", None, gates.max_document_bytes,
                 "gates.max_document_bytes"),
        _between("documents.characters", "largest share of control and replacement characters in a document",
                 "control", None, gates.max_control_fraction, "gates.max_control_fraction"),
    ]  # fmt: skip


def _mean_gates(gates: Gates) -> list[Gate]:
    return [_between("documents.mean_length", "mean bytes of a domain's documents", "mean_bytes",
                     gates.min_mean_document_bytes, None, "gates.min_mean_document_bytes")]  # fmt: skip


def _count_gates(gates: Gates, total: dict[str, Any]) -> list[Gate]:
    distinct = total["documents"] + total["sampled_out"] + sum(total["dropped"].values())
    return [
        _between("documents.count", "documents of distinct text", "distinct_documents", gates.min_documents, None,
                 "gates.min_documents"),
        _between("documents.deduplicated", "documents of distinct text: tokenized, dropped, or sampled out",
                 "distinct_documents", distinct, distinct, ""),
    ]  # fmt: skip


def _row_gates(seq_len: int, entries: int) -> list[Gate]:
    return [
        _between("tokens.row_length", "ids in every row: seq_len + 1", "length", seq_len + 1, seq_len + 1,
                 "packing.seq_len"),
        _between("tokens.range", "the lowest id", "lowest", 0, None, ""),
        _between("tokens.range", "the highest id has an entry", "highest", None, entries - 1, "model.vocab_size"),
        _between("tokens.eos", "documents of no text (two EOS in a row) in a row", "empty_documents", None, 0, ""),
    ]  # fmt: skip


def _overlap_gates() -> list[Gate]:
    return [
        _between("tokens.overlap", "held-out documents that are training documents, in a held-out row",
                 "documents_in_training", None, 0, "", where="data/tokens/heldout"),
        Gate("tokens.overlap", "held-out rows that are training rows", "data/tokens/heldout",
             "ExpectColumnValuesToBeInSet", {"column": "in_training", "value_set": [False]}, 0, "",
             lambda frame: int(frame["in_training"].sum())),
        _between("tokens.heldout_bytes", "n_bytes less the bytes of the row's targets", "bytes_off", 0, 0, "",
                 where="data/tokens/heldout"),
    ]  # fmt: skip


def _mix_gates(gates: Gates) -> list[Gate]:
    return [
        _between("tokens.domain_mix", "least share of a domain in the training tokens", "train_fraction",
                 gates.min_domain_fraction, None, "gates.min_domain_fraction"),
        _between("tokens.domain_mix", "largest share of a domain in the training tokens", "train_fraction", None,
                 gates.max_domain_fraction, "gates.max_domain_fraction"),
        _between("tokens.heldout_rows", "held-out rows of a domain", "heldout_rows", gates.min_heldout_rows, None,
                 "gates.min_heldout_rows", where="data/tokens/heldout"),
    ]  # fmt: skip


def _total_gates(gates: Gates, total: dict[str, Any]) -> list[Gate]:
    ended = total["seen_documents"] - total["tail_documents_dropped"]
    return [
        _between("tokens.train_rows", "training rows", "train_rows", gates.min_train_rows, None,
                 "gates.min_train_rows"),
        _between("tokens.counted", "training rows are those that were counted", "train_rows", total["train_rows"],
                 total["train_rows"], ""),
        _between("tokens.eos", "EOS in the training rows: one for each document that ends in them", "train_eos",
                 ended, ended, ""),
    ]  # fmt: skip


def _validate(frames: Any, suite: str, frame: pd.DataFrame, names: list[str], gates: list[Gate]) -> list[dict]:
    """Runs the gates of one frame as one suite. `names`: the columns that name a row."""
    import great_expectations as gx

    if frame.empty:  # Great Expectations passes any rule about the values of no rows
        return [_result(gate, "none", False, 0, []) for gate in gates]
    asset = frames.add_dataframe_asset(suite)
    batch = asset.add_batch_definition_whole_dataframe(suite).get_batch({"dataframe": frame})
    expectations = [
        getattr(gx.expectations, gate.expectation)(**gate.arguments, meta={"number": number})
        for number, gate in enumerate(gates)
    ]
    form = {"result_format": "SUMMARY", "partial_unexpected_count": WORST}
    if names:
        form["unexpected_index_column_names"] = names
    validation = batch.validate(gx.ExpectationSuite(name=suite, expectations=expectations), result_format=form)
    by_number = {result.expectation_config.meta["number"]: result for result in validation.results}
    found = []
    for number, gate in enumerate(gates):
        result = by_number[number]
        if result.exception_info and (trouble := _trouble(result.exception_info)):
            raise RuntimeError(f"Great Expectations could not run {gate.name} ({gate.expectation}): {trouble}")
        details = result.result
        examples = [
            {key: _plain(value) for key, value in example.items()}
            for example in details.get("partial_unexpected_index_list") or []
            if isinstance(example, dict)
        ]
        passed = bool(result.success)
        found.append(_result(gate, _plain(gate.observed(frame)), passed, details.get("unexpected_count", 0), examples))
    return found


def _result(gate: Gate, observed: Any, passed: bool, failures: int, examples: list[dict]) -> dict[str, Any]:
    return {
        "gate": gate.name,
        "rule": gate.rule,
        "where": gate.where,
        "expectation": gate.expectation,
        "observed": observed,
        "limit": gate.limit,
        "param": gate.param,
        "passed": passed,
        "failures": int(failures),
        "examples": examples[:WORST],
    }


def _trouble(information: dict[str, Any]) -> str:
    """The message of an exception inside an expectation; the library reports these in one of two forms."""
    entries = [information] if "raised_exception" in information else list(information.values())
    return "; ".join(str(e.get("exception_message")) for e in entries if e.get("raised_exception"))


def _plain(value: Any) -> Any:
    """JSON's own types for numpy's; a NaN is said in a word."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    value = value.item() if hasattr(value, "item") else value
    return "none" if isinstance(value, float) and value != value else value


def _frames() -> Any:
    """A source of pandas frames, in an ephemeral context that tells nobody and draws nothing."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    config = DataContextConfig(
        analytics_enabled=False,
        progress_bars=ProgressBarsConfig(globally=False),
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
    )
    return gx.get_context(project_config=config, mode="ephemeral").data_sources.add_pandas("frames")


def _named(documents: Path) -> list[Path]:
    return [documents / f"{entry['name']}.parquet" for entry in read_json(documents / "sources.json")]


def _entries(tokens: Path) -> int:
    return read_json(tokens / "tokenizer" / "meta.json")["vocab_size"]
