"""Checks the gates with Great Expectations: one suite on documents, one on tokens.

The library is run on an ephemeral context, with analytics, progress bars and its own Data Docs off; nothing is written.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pico.config import Gates, Packing
from pico.data.gates import catalogue as rules
from pico.data.gates.audit import Audit, Details, Progress, audit
from pico.data.gates.fates import document_blocks, domain_counts
from pico.data.gates.profiles import BINS_PER_OCTAVE, CLASSES, Rows, file_frame, heldout_rows, mark_seen, training_rows
from pico.data.gates.rules import WORST, Gate, Worst, every, worst, worst_of
from pico.data.tokens.encoding import Encoder
from pico.data.tokens.tokenizer import load_tokenizer, tokenizer_meta
from pico.errors import PicoError
from pico.files import read_json
from pico.spread import release_memory, spread


@dataclass
class Checked:
    """What became of the gates."""

    results: list[dict[str, Any]] = field(default_factory=list)
    """One a gate, in a fixed order. Keys: `gate`, `rule`, `where`, `expectation`, `observed`, `limit`, `param`,
    `passed`, and `failures`: how many rows break the rule, and `examples`: the first of them. Of a gate that cannot be
    asked of these data `passed` is None, and `observed` says why."""
    suites: dict[str, list[tuple[Any, dict[str, Any]]]] = field(default_factory=dict)
    """`documents` and `tokens`: what Great Expectations gave (None for a table of no rows) and the result, in order."""
    profile: dict[str, Any] = field(default_factory=dict)
    """What the data page shows of the documents; empty where they could not be looked at."""

    @property
    def passed(self) -> bool:
        """Whether all did that could be asked."""
        return all(result["passed"] is not False for result in self.results)

    def asked(self, gates: list[Gate], of_rows: bool) -> list[Gate]:
        """The gates that can be asked of these data; of the others it is noted that they were not."""
        if not of_rows:
            return gates
        for gate in gates:
            if reason := rules.NOT_OF_ROWS.get((gate.name, gate.column)):
                self.results.append(_result(gate, f"not applicable: {reason}", None, 0, []))
                self.suites.setdefault(gate.name.split(".")[0], []).append((None, self.results[-1]))
        return [gate for gate in gates if (gate.name, gate.column) not in rules.NOT_OF_ROWS]


def check(
    documents: Path,
    tokens: Path,
    benchmarks: Path,
    *,
    gates: Gates,
    packing: Packing,
    vocab_size: int,
    scratch: Path | None = None,
    progress: Progress = lambda fraction: None,
) -> Checked:
    """Runs every gate on `data/documents/`, `data/tokens/` and `data/benchmarks/`.

    Where files are not of the right form, or a domain is empty, only those gates are run, because the others cannot be
    looked at. `vocab_size` is that of the models; `scratch` is where to make a folder for what processes share, by
    default the system's.
    """
    checked = Checked()
    tables: list[tuple[Worst, list[str], list[Gate], dict[str, Details]]] = []

    def run(table: pd.DataFrame | Worst, names: list[str], own: list[Gate], details: dict[str, Details] | None = None):
        tables.append((table if isinstance(table, Worst) else every(table, own), names, own, details or {}))

    def sound() -> bool:
        return all(len(table.table) and not table.failures.any() for table, *_ in tables)

    of_rows = any("row_tokens" in entry for entry in read_json(documents / "sources.json"))
    files = rules.ROW_FILES if of_rows else rules.DOCUMENT_FILES
    run(file_frame(_named(documents), documents), ["file"], files)
    run(file_frame(sorted((tokens / "train").glob("*.parquet")), tokens), ["file"], rules.SHARD_FILES)
    run(file_frame(sorted((tokens / "heldout").glob("*.parquet")), tokens), ["file"], rules.HELDOUT_FILES)
    if not sound():
        return _validated(checked, tables)
    counts = domain_counts(documents)
    run(pd.DataFrame({"domain": list(counts), "documents": list(counts.values())}), ["domain"], rules.fetched(gates))
    if not sound():
        return _validated(checked, tables)

    provenance = read_json(tokens / "provenance.json")
    about_documents = checked.asked(rules.single_documents(gates), of_rows)
    about_heldout = checked.asked(rules.heldout_documents(gates), of_rows)
    blocks = document_blocks(documents, tokens)
    with tempfile.TemporaryDirectory(prefix="audit-", dir=scratch) as folder:
        found = audit(blocks, benchmarks, gates, about_documents, about_heldout, Path(folder), progress)
    checked.profile = _profile(found, tokens)
    release_memory()
    total = provenance["total"]
    duplicates, examples = found.duplicates
    used = int(found.domains["used_documents"].sum())
    corpus = pd.DataFrame(
        [{"fetched_documents": sum(counts.values()), "used_documents": used, "duplicates": duplicates}]
    )
    run(found.documents, ["source", "row", "id"], about_documents)
    run(found.domains, ["domain"], checked.asked(rules.document_domains(gates), of_rows), found.details)
    if len(found.heldout.table):
        run(found.heldout, ["source", "row", "domain"], about_heldout)
    run(found.benchmarks, ["benchmark"], rules.benchmarks(gates), found.details)
    run(corpus, [], rules.corpus(gates, total), {"documents.duplicates": {(): (duplicates, examples)}})

    entries = min(vocab_size, tokenizer_meta(tokens / "tokenizer")["vocab_size"])
    about_rows = checked.asked(rules.rows(packing.seq_len, entries), of_rows)
    heldout = heldout_rows(tokens)
    shards = _look_at_shards(tokens, about_rows, frozenset(heldout.rows), frozenset(heldout.documents))
    run(worst_of([*(part.worst for part in shards), worst(heldout.table, about_rows)], about_rows), ["file", "row"],
        about_rows)  # fmt: skip
    run(mark_seen(heldout, shards), ["file", "row"], checked.asked(rules.heldout_rows(), of_rows))
    run(_token_domains(counts, provenance, heldout.table), ["domain"], rules.token_domains(gates))
    sums = {"train_rows": sum(part.rows for part in shards), "train_eos": sum(part.eos for part in shards)}
    run(pd.DataFrame([sums]), [], rules.tokens(gates, total, of_rows))
    return _validated(checked, tables)


def _validated(checked: Checked, tables: Sequence[tuple[Worst, list[str], list[Gate], dict[str, Details]]]) -> Checked:
    """Adds what Great Expectations says of the tables. Last of all: the library is large, as is what goes before."""
    frames = _frames()
    for table, names, gates, details in tables:
        _validate(frames, checked, table, names, gates, details)
    checked.results.sort(key=lambda result: result["gate"].split(".")[0])  # stable: documents first, then tokens
    return checked


def refuse(results: list[dict[str, Any]], details: Path | None = None) -> None:
    """Raises PicoError naming every rule that failed, its rows and its setting; returns where all passed."""
    failed = [result for result in results if result["passed"] is False]
    if not failed:
        return
    lines = [f"{len(failed)} of {len(results)} data gates failed; nothing is trained on these data"]
    for result in failed:
        limit = f", limit {result['limit']}" + (f" (params.yaml: {result['param']})" if result["param"] else "")
        lines.append(f"  - {result['gate']}: {result['rule']}: observed {result['observed']}{limit}")
        if result["examples"]:
            lines.append(f"      in {result['where']}, {result['failures']:,} in all, the first:")
            lines += [f"      {', '.join(f'{k}={v}' for k, v in example.items())}" for example in result["examples"]]
    params = sorted({result["param"] for result in failed if result["param"]})
    mend = "mend the corpus (corpus.sources)" + (f", or change {', '.join(params)} in params.yaml" if params else "")
    raise PicoError("\n".join(lines), where=str(details) if details else "", mend=mend)


def _look_at_shards(tokens: Path, gates: list[Gate], rows: frozenset[bytes], documents: frozenset[bytes]) -> list[Rows]:
    """Every shard of training rows, in order."""
    eos = tokenizer_meta(tokens / "tokenizer")["eos_id"]
    paths = sorted((tokens / "train").glob("*.parquet"))
    found: list[Any] = [None] * len(paths)
    calls = [(path, f"train/{path.name}", eos, gates, rows, documents) for path in paths]
    for number, result in spread(training_rows, calls):
        found[number] = result
    return found


def _token_domains(counts: dict[str, int], provenance: dict[str, Any], heldout: pd.DataFrame) -> pd.DataFrame:
    """One row a domain that was fetched or tokenized: `train_fraction` of the tokens, and `heldout_rows`."""
    accounts = provenance["domains"]
    total = sum(account["train_tokens"] for account in accounts.values())
    rows = heldout.groupby("domain").size()
    return pd.DataFrame(
        [
            {
                "domain": domain,
                "train_fraction": accounts.get(domain, {}).get("train_tokens", 0) / max(total, 1),
                "heldout_rows": int(rows.get(domain, 0)),
            }
            for domain in sorted({*accounts, *counts})
        ]
    )


def _profile(found: Audit, tokens: Path) -> dict[str, Any]:
    """What the data page shows: histograms, characters, fertility and samples by domain; duplicates; contamination."""
    folder = tokens / "tokenizer"
    encoder = Encoder(load_tokenizer(folder), tokenizer_meta(folder)["eos_id"])
    domains = {}
    for row in found.domains.to_dict("records"):
        name = row.pop("domain")
        own = found.profile["domains"][name]
        beginnings = found.beginnings.get(name, [])
        lengths = encoder.encode([text for _, _, text in beginnings])[1] - 1
        sizes = np.array([len(text.encode()) for _, _, text in beginnings], np.int64)
        domains[name] = {
            **{key: _plain(value) for key, value in row.items()},
            "words": own["words"],
            "bytes": own["bytes"],
            "lengths": [[2 ** (place / BINS_PER_OCTAVE), n] for place, n in enumerate(own["lengths"]) if n],
            "characters": dict(zip([*CLASSES, "all"], own["characters"], strict=True)),
            "fertility": sorted((sizes[lengths > 0] / lengths[lengths > 0]).round(4).tolist()),
            "samples": [{"id": identity, "bytes": size, "text": text[:SAMPLE]} for identity, size, text in
                        beginnings[:SAMPLES]],
        }  # fmt: skip
    contaminated = found.details["documents.contamination"]
    return {
        **{key: value for key, value in found.profile.items() if key != "domains"},
        "exact_duplicates": found.duplicates[0],
        "length_bins_per_octave": BINS_PER_OCTAVE,
        "domains": domains,
        "near_duplicates": {
            gate.split(".")[1]: [example for _, examples in found.details[gate].values() for example in examples]
            for gate in ("documents.near_duplicates", "documents.heldout_near_duplicates")
        },
        "benchmarks": [
            {key: _plain(value) for key, value in row.items()}
            | {"found": contaminated.get((row["benchmark"],), (0, []))[1]}
            for row in found.benchmarks.to_dict("records")
        ],
    }


SAMPLES, SAMPLE = 3, 400
"""Documents a domain that are shown, and how many of their characters."""


def _validate(
    frames: Any, checked: Checked, table: Worst, names: list[str], gates: list[Gate], details: dict[str, Details]
) -> None:
    """Runs the gates of one table. `names`: the columns that name a row; `details`: what stands behind a named row."""
    import great_expectations as gx

    suite = gates[0].name.split(".")[0]
    results = checked.suites.setdefault(suite, [])
    if table.table.empty:  # Great Expectations passes any rule about the values of no rows
        checked.results += [_result(gate, "none", False, 0, []) for gate in gates]
        results += [(None, result) for result in checked.results[-len(gates) :]]
        return
    asset = frames.add_dataframe_asset(f"{gates[0].name} {len(checked.results)}")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": table.table})
    expectations = [
        getattr(gx.expectations, gate.expectation)(**gate.arguments, meta={"number": number})
        for number, gate in enumerate(gates)
    ]
    form = {"result_format": "SUMMARY", "partial_unexpected_count": len(table.table)}
    if names:
        form["unexpected_index_column_names"] = names
    validation = batch.validate(gx.ExpectationSuite(name=suite, expectations=expectations), result_format=form)
    by_number = {result.expectation_config.meta["number"]: result for result in validation.results}
    for number, gate in enumerate(gates):
        result = by_number[number]
        if result.exception_info and (trouble := _trouble(result.exception_info)):
            raise RuntimeError(f"Great Expectations could not run {gate.name} ({gate.expectation}): {trouble}")
        examples = [
            {key: _plain(value) for key, value in example.items()}
            for example in result.result.get("partial_unexpected_index_list") or []
            if isinstance(example, dict)
        ]
        passed, failures = bool(result.success), int(table.failures[number])
        if passed != (failures == 0):
            raise RuntimeError(f"Great Expectations and this project differ on {gate.name}: please report this")
        _of_all_rows(result.result, failures, table.rows)
        if gate.name in details and not passed:
            behind = [details[gate.name].get(key, (0, [])) for key in ([tuple(e[n] for n in names) for e in examples]
                                                                        if names else [()])]  # fmt: skip
            failures, examples = sum(count for count, _ in behind), [e for _, own in behind for e in own]
        observed = failures if gate.shows == "failures" else _observed(gate, table.table)
        checked.results.append(_result(gate, observed, passed, failures, examples))
        results.append((result, checked.results[-1]))


def _of_all_rows(found: dict[str, Any], failures: int, rows: int) -> None:
    """Makes the library's counts, of the rows that it was shown, those of the whole table."""
    share = 100 * failures / rows
    found |= {"element_count": rows, "unexpected_count": failures}
    found |= {name: share for name in found if name.startswith("unexpected_percent")}


def _observed(gate: Gate, table: pd.DataFrame) -> Any:
    """The extreme values of the gate's column, or the values that are in it."""
    values = table[gate.column].dropna()
    if gate.shows == "values":
        return sorted(set(values)) or "no file"
    if values.empty:
        return "none"
    low, high = _plain(values.min()), _plain(values.max())
    if gate.shows == "range":
        return low if low == high else [low, high]
    return low if gate.shows == "min" else high


def _result(gate: Gate, observed: Any, passed: bool | None, failures: int, examples: list[dict]) -> dict[str, Any]:
    return {
        "gate": gate.name,
        "rule": gate.rule,
        "where": gate.where,
        "expectation": gate.expectation,
        "observed": observed,
        "limit": gate.limit,
        "param": gate.param,
        "passed": passed,
        "failures": failures,
        "examples": examples[:WORST],
    }


def _trouble(information: dict[str, Any]) -> str:
    """The message of an exception inside an expectation; the library reports these in one of two forms."""
    entries = [information] if "raised_exception" in information else list(information.values())
    return "; ".join(str(e.get("exception_message")) for e in entries if e.get("raised_exception"))


def _plain(value: Any) -> Any:
    """JSON's own types for numpy's, whole numbers as such; a NaN is said in a word."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return "none" if value != value else int(value) if value.is_integer() else value
    return value


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
