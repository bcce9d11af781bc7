"""The gates as a whole: good data pass; a failure names its rule, rows and setting, in JSON and in the Data Docs."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gate_cases import QUESTION, checked, failed, gates_of, only_failure, rewrite, sha256, similar_pair, spoil_documents
from made_documents import made_up

from pico.data.gates.check import refuse
from pico.errors import PicoError
from pico.expectations.data_docs import write_data_docs


def test_sound_data_pass_every_gate_and_the_results_are_json_without_times(sound):
    one, two = checked(sound), checked(sound)
    assert failed(one.results) == set()
    refuse(one.results)
    for name in ("results", "profile"):
        first, second = getattr(one, name), getattr(two, name)
        assert first == second == json.loads(json.dumps(first, allow_nan=False))
    assert {result["gate"] for result in one.results} >= {
        "documents.schema", "documents.nulls", "documents.identity", "documents.length", "documents.characters",
        "documents.duplicates", "documents.near_duplicates", "documents.heldout_near_duplicates",
        "documents.heldout_overlap", "documents.contamination", "tokens.schema", "tokens.row_length", "tokens.range",
        "tokens.eos", "tokens.overlap", "tokens.domain_mix",
    }  # fmt: skip
    assert sum(len(entries) for entries in one.suites.values()) == len(one.results)
    assert set(one.suites) == {"documents", "tokens"}


def test_every_limit_is_the_one_that_the_setting_sets(sound):
    unmet = {
        "min_documents": 1000, "min_document_bytes": 30, "max_document_bytes": 100, "min_mean_document_bytes": 5000,
        "min_domain_fraction": 0.5, "max_domain_fraction": 0.5, "min_train_rows": 10**6, "min_heldout_rows": 7,
    }  # fmt: skip
    results = gates_of(sound, seq_len=15, vocab_size=299, **unmet)
    assert failed(results) == {
        ("documents.count", "gates.min_documents"),
        ("documents.length", "gates.min_document_bytes"),
        ("documents.length", "gates.max_document_bytes"),
        ("documents.mean_length", "gates.min_mean_document_bytes"),
        ("tokens.domain_mix", "gates.min_domain_fraction"),
        ("tokens.domain_mix", "gates.max_domain_fraction"),
        ("tokens.train_rows", "gates.min_train_rows"),
        ("tokens.heldout_rows", "gates.min_heldout_rows"),
        ("tokens.row_length", "packing.seq_len"),
        ("tokens.range", "model.vocab_size"),
    }
    assert failed(gates_of(sound, min_domain_documents=91)) == {("documents.domains", "gates.min_domain_documents")}


def test_a_failure_names_rule_rows_and_setting(sound, tmp_path):
    with pytest.raises(PicoError) as caught:
        refuse(gates_of(sound, max_document_bytes=150), tmp_path / "gates.json")
    text = str(caught.value)
    assert "documents.length: bytes of the longest document" in text
    assert "limit 150 (params.yaml: gates.max_document_bytes)" in text
    assert "source=novels, row=" in text
    assert "gates.json" in text


def test_results_do_not_depend_on_the_order_in_which_processes_finish(data, monkeypatch):
    spoil_documents(data, [*made_up(90, 3), *similar_pair(heldout=True), QUESTION])
    expected = [checked(data, compared_documents=count) for count in (10_000, 60)]

    def backwards(function, calls):
        yield from reversed(list(enumerate([function(*call) for call in calls])))

    for module in ("audit", "duplicates", "check"):
        monkeypatch.setattr(f"pico.data.gates.{module}.spread", backwards)
    found = [checked(data, compared_documents=count) for count in (10_000, 60)]
    assert [(one.results, one.profile) for one in found] == [(one.results, one.profile) for one in expected]


def test_another_schema_stops_the_rest(data):
    path = data / "documents/odes.parquet"
    rewrite(path, pq.read_table(path).drop_columns(["domain"]))
    shard = next((data / "tokens/train").glob("*.parquet"))
    rewrite(shard, pa.table({"input_ids": pa.array([[1, 2]], pa.list_(pa.int64()))}))
    results = gates_of(data)
    assert failed(results) == {("documents.schema", ""), ("tokens.schema", "")}
    assert [e["file"] for r in results for e in r["examples"]] == ["odes.parquet", f"train/{shard.name}"]
    shutil.rmtree(data / "tokens/train")
    assert ("tokens.schema", "") in failed(gates_of(data))
    (data / "documents/odes.parquet").unlink()
    assert ("documents.schema", "") in failed(gates_of(data))


def test_missing_benchmarks_are_an_error(data):
    shutil.rmtree(data / "benchmarks")
    with pytest.raises(PicoError, match="benchmarks holds no benchmarks"):
        gates_of(data)


def test_many_failures_are_counted_over_all_rows_and_five_are_shown(sound):
    result = only_failure(gates_of(sound, max_document_bytes=100))
    paths = [*(sound / "tokens").glob("*-provenance/*.parquet")]
    used = {identity for path in paths for identity in pq.read_table(path)["document"].to_pylist()}
    texts = {*made_up(120, 1), *made_up(60, 2), *made_up(90, 3)}
    sizes = [len(text.encode()) for text in texts if sha256(text) in used]
    assert result["failures"] == sum(size > 100 for size in sizes)
    assert len(result["examples"]) == 5
    assert result["observed"] == max(sizes)


def test_data_docs_load_nothing_hold_no_clock_and_show_each_gate(sound, tmp_path):
    for name in ("one", "two"):
        write_data_docs(checked(sound).suites, tmp_path / name, title="Gates")
    pages = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert pages == ["documents.html", "index.html", "tokens.html"]
    for page in pages:
        text = (tmp_path / "one" / page).read_text()
        assert text == (tmp_path / "two" / page).read_text()
        assert "http" not in text
        assert not any(tag in text for tag in ("<script", "<img", '<link rel="stylesheet', "@import", "url("))
        assert "1970" not in text
    text = (tmp_path / "one" / "documents.html").read_text()
    assert "values must be greater than or equal to" in text  # Great Expectations' own words
    assert text.count("✓ passed") == sum(r["gate"].startswith("documents.") for r in gates_of(sound))


def test_data_docs_name_what_failed_and_no_data_become_markup(data, tmp_path):
    path = data / "documents/odes.parquet"
    table = pq.read_table(path)
    rewrite(path, table.append_column("<script>alert(1)</script>", table["id"]))
    write_data_docs(checked(data).suites, tmp_path / "docs", title="Gates")
    text = (tmp_path / "docs/documents.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "✗ failed" in text
    assert "odes.parquet" in text
