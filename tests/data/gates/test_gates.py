"""The gates as a whole: good data pass; a failure names its rule, rows and setting, in JSON and in the Data Docs."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gate_cases import QUESTION, checked, failed, gates_of, only_failure, rewrite, sha256, similar_pair, spoil_documents
from made_documents import made_up

from pico.config import ExpectationSuite
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


def own_suite(folder, name, on, *expectations):
    """The setting of a suite that lies in a folder."""
    listed = [{"type": kind, "kwargs": kwargs} for kind, kwargs in expectations]
    (folder / f"{name}.json").write_text(json.dumps({"name": name, "expectations": listed}))
    return ExpectationSuite(file=str(folder / f"{name}.json"), on=on)


def test_suites_of_the_user_are_decided_on_whole_tables_and_change_nothing_else(sound, tmp_path):
    between, table = "expect_column_values_to_be_between", "expect_table_row_count_to_equal"
    examples = 22 + 20  # of the two benchmarks
    suites = [
        own_suite(tmp_path, "mine", "documents", (table, {"value": 272}),
                  (between, {"column": "text_bytes", "min_value": 2}),
                  ("expect_column_values_to_not_match_regex", {"column": "text", "regex": "lorem ipsum"}),
                  ("expect_column_values_to_be_in_set",
                   {"column": "use", "value_set": ["train", "heldout", "duplicate", "beyond_heldout_rows", "tail"]})),
        own_suite(tmp_path, "rows", "tokens", (between, {"column": "length", "min_value": 17, "max_value": 17})),
        own_suite(tmp_path, "asked", "benchmarks", (table, {"value": examples}),
                  ("expect_column_value_lengths_to_be_between", {"column": "text", "min_value": 5, "mostly": 0.9})),
        own_suite(tmp_path, "later", "metrics", (table, {"value": 0})),
    ]  # fmt: skip
    found, without = checked(sound, suites=suites), checked(sound)
    assert found.passed
    assert (found.results, found.profile) == (without.results, without.profile)
    assert [result["gate"] for result in found.own] == ["mine"] * 4 + ["rows"] + ["asked"] * 2
    write_data_docs(found.suites, tmp_path / "docs", title="Gates")
    assert {page.stem for page in (tmp_path / "docs").iterdir()} == {
        "index", "documents", "tokens", "suite-mine", "suite-rows", "suite-asked"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("on", "expectation", "row"),
    [
        ("documents", ("expect_column_values_to_not_match_regex", {"column": "text", "regex": "^3-7 "}),
         {"source": "odes", "row": 7}),
        ("tokens", ("expect_column_values_to_be_between", {"column": "eos", "max_value": 0}), {"row": 0}),
        ("benchmarks", ("expect_column_values_to_not_match_regex", {"column": "text", "regex": "deep sea"}),
         {"benchmark": "sciences/validation", "example": 0}),
    ],
)  # fmt: skip
def test_a_suite_of_the_user_that_fails_stops_the_graph_and_names_the_rows(sound, tmp_path, on, expectation, row):
    found = checked(sound, suites=[own_suite(tmp_path, "mine", on, expectation)])
    assert not found.passed
    assert failed(found.results) == set()
    result = only_failure(found.own)
    assert result["examples"][0].items() >= row.items()
    with pytest.raises(PicoError, match=r"mine: column values to [\s\S]*gates\.suites"):
        refuse([*found.results, *found.own])
