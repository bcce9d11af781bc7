"""Checks the gates: measures documents and tokens, and asks Great Expectations about the tables of measures."""

import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from pico.config import Gates, Packing
from pico.data.gates import catalogue
from pico.data.gates.audit import Audit, Details, Progress, audit
from pico.data.gates.catalogue import Gate
from pico.data.gates.contamination import examples_of
from pico.data.gates.documents import domain_counts, row_groups
from pico.data.gates.profiles import (
    BINS_PER_OCTAVE,
    CLASSES,
    ROW_COLUMNS,
    Shard,
    file_frame,
    mark_seen,
    measure_heldout_rows,
    measure_shard,
)
from pico.data.tokens.encoding import Encoder
from pico.data.tokens.tokenizer import load_tokenizer, tokenizer_meta
from pico.errors import PicoError
from pico.expectations.evaluation import SHOWN, Tables, error_of, plain
from pico.expectations.suites import UserSuite, evaluate_suites, read_suites
from pico.files import read_json
from pico.spread import release_memory, spread

SAMPLES, SAMPLE = 3, 400
"""Documents a domain that are shown, and how many of their characters."""


@dataclass
class Checked:
    """The results of the gates, and of the user's own suites."""

    results: list[dict[str, Any]] = field(default_factory=list)
    """One a gate, in a fixed order. Keys: `gate`, `rule`, `where`, `expectation`, `observed`, `limit`, `param`,
    `passed`, and `failures`: how many rows break the rule, and `examples`: the first of them. Where a gate cannot be
    asked of these data `passed` is None, and `observed` says why."""
    own: list[dict[str, Any]] = field(default_factory=list)
    """The same for each expectation of the user's own suites. They are apart, so that a suite that passes changes
    nothing that training depends on."""
    suites: dict[str, list[tuple[Any, dict[str, Any]]]] = field(default_factory=dict)
    """`documents`, `tokens` and the user's own: what Great Expectations gave (None for a table of no rows) and the
    result, in order."""
    profile: dict[str, Any] = field(default_factory=dict)
    """The documents as the data page shows them; empty where they could not be measured."""

    @property
    def passed(self) -> bool:
        """True where all passed that could be asked."""
        return all(result["passed"] is not False for result in [*self.results, *self.own])


@dataclass(frozen=True)
class _Question:
    """The gates of one table, whose rows the columns `keys` name."""

    table: str
    keys: list[str]
    gates: list[Gate]
    details: dict[str, Details]
    """Gate -> what stands behind a named row."""


class _Check:
    """Collects tables and the gates about them; Great Expectations comes last, as it is large, and so is the rest."""

    def __init__(self, tables: Tables, of_rows: bool) -> None:
        self.tables, self.of_rows = tables, of_rows
        self.checked = Checked()
        self.questions: list[_Question] = []

    def ask(
        self, table: str, keys: list[str], gates: list[Gate], frame: pd.DataFrame | None = None,
        details: dict[str, Details] | None = None,
    ) -> None:  # fmt: skip
        """Notes the gates of a table, and which of them cannot be asked of rows of ids. frame: its rows, if new."""
        if frame is not None:
            self.tables.append(table, frame)
        for gate in gates:
            if reason := self._reason(gate):
                self._add(gate, None, _result(gate, f"not applicable: {reason}", None, 0, []))
        self.questions.append(_Question(table, keys, [gate for gate in gates if not self._reason(gate)], details or {}))

    def _reason(self, gate: Gate) -> str:
        return catalogue.NOT_OF_ROWS.get((gate.name, gate.column), "") if self.of_rows else ""

    def _add(self, gate: Gate, found: Any, result: dict[str, Any]) -> None:
        self.checked.results.append(result)
        self.checked.suites.setdefault(gate.name.split(".")[0], []).append((found, result))

    def decide(self) -> Checked:
        """Evaluates every gate on the whole of its table."""
        for question in self.questions:
            if question.gates:
                self._decide(question)
        self.checked.results.sort(key=lambda result: result["gate"].split(".")[0])  # stable: documents, then tokens
        return self.checked

    def _decide(self, question: _Question) -> None:
        tables, name, gates = self.tables, question.table, question.gates
        rows = tables.rows(name)
        if not rows:  # Great Expectations passes any rule about the values of no rows
            for gate in gates:
                self._add(gate, None, _result(gate, "none", False, 0, []))
            return
        import great_expectations as gx

        expectations = [getattr(gx.expectations, gate.expectation)(**gate.arguments) for gate in gates]
        # With details, the rows that fail are counted by what stands behind them, so all are needed.
        answers = tables.evaluate(name, expectations, question.keys, rows if question.details else SHOWN)
        for gate, found in zip(gates, answers, strict=True):
            if trouble := error_of(found):
                raise RuntimeError(f"Great Expectations could not run {gate.name} ({gate.expectation}): {trouble}")
            passed, failures = bool(found.success), found.result["unexpected_count"]
            examples = tables.examples(name, found)
            if gate.name in question.details and not passed:
                own = question.details[gate.name]
                named = [tuple(example[key] for key in question.keys) for example in examples or [{}]]
                behind = [own.get(key, (0, [])) for key in named]
                failures = sum(count for count, _ in behind)
                examples = [example for _, listed in behind for example in listed]
            observed = failures if gate.shows == "failures" else self._observed(name, gate)
            self._add(gate, found, _result(gate, observed, passed, failures, examples))

    def _observed(self, table: str, gate: Gate) -> Any:
        """The extreme values of the gate's column, or the values that are in it."""
        if gate.shows == "values":
            return self.tables.values(table, gate.column)
        low, high = map(plain, self.tables.extremes(table, gate.column))
        if low is None:
            return "none"
        if gate.shows == "range":
            return low if low == high else [low, high]
        return low if gate.shows == "min" else high


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
    """Runs every gate on `data/documents/`, `data/tokens/` and `data/benchmarks/`, and the user's own suites on them.

    Where files are not of the right form, or a domain is empty, only those gates are run, because the others cannot be
    measured. vocab_size: that of the models; scratch: where to make a folder for tables and for what processes share,
    by default the system's.
    """
    suites = read_suites(gates.suites, ("documents", "tokens", "benchmarks"))
    with (
        tempfile.TemporaryDirectory(prefix="audit-", dir=scratch) as folder,
        closing(Tables(Path(folder) / "tables.sqlite")) as tables,
    ):
        return _check(documents, tokens, benchmarks, gates, packing, vocab_size, tables, suites, progress)


def _check(
    documents: Path, tokens: Path, benchmarks: Path, gates: Gates, packing: Packing, vocab_size: int, tables: Tables,
    suites: Sequence[UserSuite], progress: Progress,
) -> Checked:  # fmt: skip
    sources = read_json(documents / "sources.json")
    of_rows = any("row_tokens" in entry for entry in sources)
    asked = _Check(tables, of_rows)
    named = [documents / f"{entry['name']}.parquet" for entry in sources]
    formed = True
    for name, files, root, rules in (
        ("files", named, documents, catalogue.ROW_FILES if of_rows else catalogue.DOCUMENT_FILES),
        ("shards", sorted((tokens / "train").glob("*.parquet")), tokens, catalogue.SHARD_FILES),
        ("heldout_files", sorted((tokens / "heldout").glob("*.parquet")), tokens, catalogue.HELDOUT_FILES),
    ):
        frame = file_frame(files, root)
        formed &= bool(len(frame)) and bool((frame["columns"] == rules[0].limit).all())
        asked.ask(name, ["file"], rules, frame)
    if not formed:
        return _refused(asked)
    counts = domain_counts(documents)
    frame = pd.DataFrame({"domain": list(counts), "documents": list(counts.values())})
    asked.ask("fetched", ["domain"], catalogue.fetched(gates), frame)
    if not counts or min(counts.values()) < gates.min_domain_documents:
        return _refused(asked)

    provenance = read_json(tokens / "provenance.json")
    total = provenance["total"]
    groups = row_groups(documents, tokens)
    found = audit(groups, benchmarks, gates, tables, tables.path.parent, progress)
    release_memory()
    duplicates, examples = found.duplicates
    used = int(found.domains["used_documents"].sum())
    corpus = [{"fetched_documents": sum(counts.values()), "used_documents": used, "duplicates": duplicates}]
    asked.ask("documents", ["source", "row", "id"], catalogue.single_documents(gates))
    asked.ask("domains", ["domain"], catalogue.document_domains(gates), found.domains, found.details)
    if tables.rows("heldout"):
        asked.ask("heldout", ["source", "row", "domain"], catalogue.heldout_documents(gates))
    asked.ask("benchmarks", ["benchmark"], catalogue.benchmarks(gates), found.benchmarks, found.details)
    asked.ask("corpus", [], catalogue.corpus(gates, total), pd.DataFrame(corpus),
              {"documents.duplicates": {(): (duplicates, examples)}})  # fmt: skip

    entries = min(vocab_size, tokenizer_meta(tokens / "tokenizer")["vocab_size"])
    heldout = measure_heldout_rows(tokens)
    shards, rows, eos = _measure_shards(tokens, tables, frozenset(heldout.rows), frozenset(heldout.documents))
    tables.append("rows", heldout.table[ROW_COLUMNS])
    asked.ask("rows", ["file", "row"], catalogue.rows(packing.seq_len, entries))
    asked.ask("heldout_rows", ["file", "row"], catalogue.heldout_rows(), mark_seen(heldout, shards))
    asked.ask("shares", ["domain"], catalogue.token_domains(gates), _token_domains(counts, provenance, heldout.table))
    asked.ask("tokens", [], catalogue.tokens(gates, total, of_rows),
              pd.DataFrame([{"train_rows": rows, "train_eos": eos}]))  # fmt: skip
    asked.checked.profile = _profile(found, tokens)

    places = {"documents": "documents", "tokens": "rows", "benchmarks": "examples"}
    if any(suite.on == "documents" and suite.mentions("text") for suite in suites):
        for group in groups:
            tables.append("texts", group.read(["text"]).select(["text"]), first=group.place + 1)
        tables.join("documents_with_text", "documents", "texts")
        places["documents"] = "documents_with_text"
    if any(suite.on == "benchmarks" for suite in suites):
        for part in examples_of(benchmarks):
            tables.append("examples", part)
    checked = asked.decide()
    for page, answers in evaluate_suites(tables, suites, places).items():
        checked.suites[page] = answers
        checked.own += [result for _, result in answers]
    return checked


def _refused(asked: _Check) -> Checked:
    checked = asked.decide()
    if checked.passed:
        raise RuntimeError("Great Expectations passed data that cannot be measured: please report this")
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


def _measure_shards(
    tokens: Path, tables: Tables, rows: frozenset[bytes], documents: frozenset[bytes]
) -> tuple[list[Shard], int, int]:
    """Writes every training row to the table `rows`; returns the rest, and how many rows and EOS there are."""
    eos = tokenizer_meta(tokens / "tokenizer")["eos_id"]
    paths = sorted((tokens / "train").glob("*.parquet"))
    places = np.cumsum([0, *(pq.read_metadata(path).num_rows for path in paths)]).tolist()
    found: list[Any] = [None] * len(paths)
    calls = [(path, f"train/{path.name}", eos, rows, documents) for path in paths]
    n_eos = 0
    for number, shard in spread(measure_shard, calls):
        tables.append("rows", shard.table, first=places[number] + 1)
        n_eos += int(shard.table["eos"].sum()) if len(shard.table) else 0
        found[number] = replace(shard, table=pd.DataFrame())
    return found, places[-1], n_eos


def _token_domains(counts: dict[str, int], provenance: dict[str, Any], heldout: pd.DataFrame) -> pd.DataFrame:
    """Returns one row a domain that was fetched or tokenized: `train_fraction` of the tokens, and `heldout_rows`."""
    counted = provenance["domains"]
    total = sum(entry["train_tokens"] for entry in counted.values())
    rows = heldout.groupby("domain").size()
    domains = sorted({*counted, *counts})
    shares = [counted.get(domain, {}).get("train_tokens", 0) / max(total, 1) for domain in domains]
    heldout_rows = [int(rows.get(domain, 0)) for domain in domains]
    return pd.DataFrame({"domain": domains, "train_fraction": shares, "heldout_rows": heldout_rows})


def _profile(found: Audit, tokens: Path) -> dict[str, Any]:
    """Returns what the data page shows: histograms, characters, fertility and samples by domain; duplicates;
    contamination."""
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
            **{key: plain(value) for key, value in row.items()},
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
            {key: plain(value) for key, value in row.items()}
            | {"found": contaminated.get((row["benchmark"],), (0, []))[1]}
            for row in found.benchmarks.to_dict("records")
        ],
    }


def _result(gate: Gate, observed: Any, passed: bool | None, failures: int, examples: list[dict]) -> dict[str, Any]:
    about = {key: getattr(gate, key) for key in ("rule", "where", "expectation", "limit", "param")}
    found = {"observed": observed, "passed": passed, "failures": failures, "examples": examples[:SHOWN]}
    return {"gate": gate.name, **about, **found}
