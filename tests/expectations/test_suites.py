"""The user's own suites: what the library writes is read, decided on whole tables, shown, and never run as code."""

import json

import great_expectations as gx
import pandas as pd
import pyarrow as pa
import pytest
from great_expectations import expectations as ex
from ruamel.yaml import YAML

from flows.benchmark import results_table
from flows.stage import Stage
from pico.config import ExpectationSuite
from pico.errors import PicoError
from pico.expectations.data_docs import write_data_docs
from pico.expectations.evaluation import Tables
from pico.expectations.suites import check_table, evaluate_suites, read_suites

METRICS = pa.table(
    {
        "step": [0, 0, 8, 8],
        "metric": ["cka", "norm", "cka", "norm"],
        "component": ["mlp"] * 4,
        "data_type": ["weights"] * 4,
        "layer": [0, 0, 0, 0],
        "head": pa.array([None] * 4, pa.int64()),
        "split": pa.array([None] * 4, pa.string()),
        "value": [0.5, 12.0, None, 11.0],
    }
)
RESULTS = [
    {
        "step": 8,
        "tokens": 64,
        "heldout": {"all": {"nats": 20.0, "bits_per_byte": 1.5}},
        "benchmarks": {"piqa": {"metric": "acc", "value": 0.5, "stderr": None, "all": {"acc": 0.5}}},
    }
]


def write_suite(path, *expectations):
    """Writes a suite as the library gives it."""
    content = gx.ExpectationSuite(name="mine", expectations=list(expectations)).to_json_dict()
    if path.suffix == ".json":
        path.write_text(json.dumps(content))
    else:
        with path.open("w") as file:
            YAML(typ="safe").dump(content, file)
    return path


def setting(path, on):
    return ExpectationSuite(file=str(path), on=on)


@pytest.mark.parametrize("ending", ["json", "yaml"])
@pytest.mark.parametrize(("on", "table"), [("metrics", METRICS), ("results", results_table(RESULTS))])
def test_a_suite_that_passes_is_shown(tmp_path, on, table, ending):
    condition = {"row_condition": 'col("step") == 8', "condition_parser": "great_expectations"}
    path = write_suite(
        tmp_path / f"own_one.{ending}",
        ex.ExpectColumnValuesToBeBetween(column="value", min_value=0, max_value=100),
        ex.ExpectColumnToExist(column="step"),
        ex.ExpectTableRowCountToBeBetween(min_value=1, max_value=10),
        ex.ExpectColumnValuesToBeInSet(column="step", value_set=[8], **condition),
        ex.ExpectColumnDistinctValuesToContainSet(column="step", value_set=[8]),
        ex.ExpectColumnMeanToBeBetween(column="value", min_value=0.5, max_value=12),
        ex.ExpectColumnValuesToMatchRegex(column="metric" if on == "metrics" else "task", regex="[a-z/]+"),
    )
    for other in ("one", "two"):
        check_table(on, [table.slice(0, 2), table.slice(2)], [setting(path, on)], tmp_path / other, "tiny")
    page = (tmp_path / "one/suite-own_one.html").read_text()
    assert page == (tmp_path / "two/suite-own_one.html").read_text()
    assert page.count("✓ passed") == 7
    assert "http" not in page
    assert "1970" not in page
    assert f"Expectations on {on} of tiny" in (tmp_path / "one/index.html").read_text()


@pytest.mark.parametrize(("on", "table"), [("metrics", METRICS), ("results", results_table(RESULTS))])
def test_a_suite_that_fails_names_expectation_limit_and_rows(tmp_path, on, table):
    path = write_suite(tmp_path / "own.json", ex.ExpectColumnValuesToBeBetween(column="value", max_value=11))
    with pytest.raises(PicoError) as caught:
        check_table(on, [table], [setting(path, on)], tmp_path / "docs", "tiny")
    text = str(caught.value)
    assert f"1 expectations on {on} of tiny failed" in text
    assert "own: column values to be between: value: observed 1, limit max_value 11" in text
    row = "step=0, metric=norm, component=mlp" if on == "metrics" else "step=8, task=heldout/all, measure=nats"
    assert row in text
    assert "docs/index.html" in text
    assert "✗ failed" in (tmp_path / "docs/suite-own.html").read_text()
    # The next time without the suite, its pages are gone.
    check_table(on, [table], [], tmp_path / "docs")
    assert not (tmp_path / "docs").exists()


def test_suites_on_other_tables_are_left_to_other_stages(tmp_path):
    path = write_suite(tmp_path / "own.json", ex.ExpectColumnToExist(column="absent"))
    check_table("metrics", [METRICS], [setting(path, "documents")], tmp_path / "docs")
    assert not (tmp_path / "docs").exists()


BETWEEN = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "value", "max_value": 1}}


@pytest.mark.parametrize(
    ("content", "key", "what"),
    [
        ([], "", "valid dictionary"),
        ({"expectation": [BETWEEN]}, "expectations", "required"),
        ({"expectations": [BETWEEN], "tables": []}, "tables", "not permitted"),
        ({"expectations": []}, "expectations", "at least 1"),
        ({"expectations": [BETWEEN], "suite_parameters": {"a": 1}}, "suite_parameters", "at most 0"),
        ({"expectations": [BETWEEN, "x"]}, "expectations.1", "valid dictionary"),
        ({"expectations": [BETWEEN | {"kwarg": {}}]}, "expectations.0.kwarg", "not permitted"),
        ({"expectations": [BETWEEN | {"type": "expect_column_values_to_be_betwen"}]}, "expectations.0.type",
         "expect_column_values_to_be_between is"),
        ({"expectations": [BETWEEN | {"type": "my_own_expectation"}]}, "expectations.0.type", "no expectation of"),
        ({"expectations": [BETWEEN | {"kwargs": {"max_value": 1}}]}, "expectations.0.kwargs", "column"),
        ({"expectations": [BETWEEN | {"kwargs": {"column": "value", "max_value": 1, "most": 1}}]},
         "expectations.0.kwargs.most", "no argument 'most'"),
        ({"expectations": [BETWEEN | {"kwargs": {"column": "value", "max_value": {"$PARAMETER": "now()"}}}]},
         "expectations.0.kwargs", "PARAMETER"),
        ({"expectations": [BETWEEN | {"kwargs": {"column": "value", "max_value": 1, "result_format": "BASIC"}}]},
         "expectations.0.kwargs.result_format", "set by this project"),
        ({"expectations": [{"type": "unexpected_rows_expectation",
                            "kwargs": {"unexpected_rows_query": "SELECT * FROM {batch}"}}]}, "expectations.0.type",
         "SQL"),
        ({"expectations": [{"type": "expect_query_results_to_match_comparison", "kwargs": {}}]},
         "expectations.0.type", "SQL"),
        ({"expectations": [{"type": "expect_table_row_count_to_equal_other_table",
                            "kwargs": {"other_table_name": "sqlite_master"}}]}, "expectations.0.type",
         "another table"),
    ],
)  # fmt: skip
def test_a_wrong_suite_is_refused_with_file_and_key(tmp_path, content, key, what):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    with pytest.raises(PicoError, match=what) as caught:
        read_suites([setting(path, "metrics")], ("metrics",))
    assert caught.value.where == f"{path}: {key}"


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("own.json", "{", "no JSON"),
        ("own.yaml", "a: [", "no YAML"),
        ("own.yaml", "!!python/object/apply:os.system ['true']", "no YAML"),
        ("own.yaml", "a: &a [1]\nb: *a", "aliases"),
        ("own.yaml", "[" * 5000, "no YAML"),
        ("own.json", "[" * 200_000, "no JSON"),
        ("own.json", " " * 2**21, "bytes"),
        ("own one.json", "{}", "letters, digits"),
    ],
)
def test_a_file_that_is_no_suite_is_refused(tmp_path, name, text, what):
    (tmp_path / name).write_text(text)
    with pytest.raises(PicoError, match=what):
        read_suites([setting(tmp_path / name, "metrics")], ("metrics",))
    with pytest.raises(PicoError, match=r"absent\.json cannot be read"):
        read_suites([setting(tmp_path / "absent.json", "metrics")], ("metrics",))


def test_two_suites_of_one_name_are_refused(tmp_path):
    both = [setting(write_suite(tmp_path / f"own.{end}", ex.ExpectColumnToExist(column="a")), "metrics")
            for end in ("json", "yaml")]  # fmt: skip
    with pytest.raises(PicoError, match="its name 'own' is taken"):
        read_suites(both, ("metrics",))


def test_an_expectation_that_cannot_be_evaluated_is_named_with_the_columns_that_there_are(tmp_path):
    path = write_suite(tmp_path / "own.json", ex.ExpectColumnValuesToBeBetween(column="values", max_value=1))
    with pytest.raises(PicoError, match=r"cannot evaluate[\s\S]*own\.json: expectations\.0[\s\S]*step, metric"):
        check_table("metrics", [METRICS], [setting(path, "metrics")], tmp_path / "docs")
    with pytest.raises(PicoError, match="metrics has no rows"):
        check_table("metrics", [METRICS.slice(0, 0)], [setting(path, "metrics")], tmp_path / "docs")


def test_nothing_of_a_suite_becomes_markup(tmp_path):
    evil = "<script>alert(1)</script>"
    path = tmp_path / "own.json"
    kinds = [
        ("values_to_be_in_set", {"value_set": [evil]}), ("values_to_match_regex", {"regex": evil}),
        ("values_to_not_match_regex_list", {"regex_list": [evil]}), ("distinct_values_to_equal_set",
        {"value_set": [evil]}), ("values_to_match_like_pattern", {"like_pattern": evil}),
    ]  # fmt: skip
    listed = [
        {"type": f"expect_column_{kind}", "kwargs": {"column": "metric"} | kwargs, "meta": {"notes": evil},
         "notes": evil, "description": evil}
        for kind, kwargs in kinds
    ]  # fmt: skip
    path.write_text(json.dumps({"name": evil, "meta": {"notes": evil}, "expectations": listed}))
    with pytest.raises(PicoError, match="4 expectations"):
        check_table("metrics", [METRICS], [setting(path, "metrics")], tmp_path / "docs")
    for page in (tmp_path / "docs").iterdir():
        text = page.read_text()
        assert "<script" not in text
        assert "&lt;script&gt;" in text or page.name == "index.html"
        assert "&amp;lt;" not in text


def test_the_library_cannot_write_to_the_tables(tmp_path):
    tables = Tables(tmp_path / "a $odd%name?.sqlite")
    tables.append("numbers", pd.DataFrame({"n": [1, 2, 3]}))
    found = tables.evaluate("numbers", [ex.ExpectColumnMaxToBeBetween(column="n", max_value=3)])
    assert found[0].success
    engine = tables._source.get_execution_engine().engine
    with pytest.raises(Exception, match="readonly database"), engine.connect() as connection:
        connection.exec_driver_sql("delete from numbers")
    tables.close()


def test_a_table_is_read_in_the_order_of_its_rows_whatever_the_order_of_its_parts(tmp_path):
    rows = pd.DataFrame({"id": [f"r{n}" for n in range(50_000)], "n": range(50_000), "even": [True, False] * 25_000})
    answers = []
    for name, order in (("one", (0, 1, 2)), ("two", (2, 0, 1))):
        tables = Tables(tmp_path / f"{name}.sqlite")
        cuts = [(0, 20_000), (20_000, 20_001), (20_001, 50_000)]
        for part in order:
            start, end = cuts[part]
            tables.append("rows", rows[start:end], first=start + 1)
        tables.append("few", pd.DataFrame({"n": [float("nan"), 2.5]}))
        assert (tables.rows("rows"), tables.extremes("rows", "n")) == (50_000, (0, 49_999))
        assert (tables.values("few", "n"), tables.rows("none"), tables.columns("none")) == ([2.5], 0, [])
        limit, even = (ex.ExpectColumnValuesToBeBetween(column="n", max_value=19_990),
                       ex.ExpectColumnValuesToBeInSet(column="even", value_set=[True]))  # fmt: skip
        found = tables.evaluate("rows", [limit, even], ["id"])
        assert [one.result["unexpected_count"] for one in found] == [30_009, 25_000]
        answers.append([tables.examples("rows", one) for one in found])
        assert tables.evaluate("few", [ex.ExpectColumnValuesToNotBeNull(column="n")])[0].result["unexpected_count"] == 1
        tables.close()
    assert answers[0] == answers[1]
    assert answers[0][0] == [{"id": f"r{n}", "n": n} for n in range(19_991, 19_996)]
    assert answers[0][1][0] == {"id": "r1", "even": False}


def test_an_empty_suite_has_no_page_and_pages_do_not_depend_on_what_was_shown_before(tmp_path):
    tables = Tables(tmp_path / "tables.sqlite")
    tables.append("metrics", METRICS)
    path = write_suite(tmp_path / "own.json", ex.ExpectColumnToExist(column="step"))
    answers = evaluate_suites(tables, read_suites([setting(path, "metrics")], ("metrics",)), {"metrics": "metrics"})
    write_data_docs(answers | {"none": []}, tmp_path / "docs", title="All")
    assert {page.name for page in (tmp_path / "docs").iterdir()} == {"index.html", "suite-own.html"}
    tables.close()


def test_results_become_one_row_a_figure():
    rows = results_table(RESULTS).to_pylist()
    assert [(row["task"], row["measure"], row["value"]) for row in rows] == [
        ("heldout/all", "nats", 20.0), ("heldout/all", "bits_per_byte", 1.5), ("piqa", "value", 0.5),
        ("piqa", "stderr", None),
    ]  # fmt: skip
    assert {(row["step"], row["tokens"]) for row in rows} == {(8, 64)}


def test_a_file_that_dvc_does_not_watch_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {analyze: {deps: [one.json, suites]}}")
    stage = Stage("analyze", None)
    stage.require_deps(["one.json", "suites/two.json"], "gates.suites")
    with pytest.raises(PicoError, match=r"three\.json is no dep of stage analyze[\s\S]*gates\.suites[\s\S]*- three"):
        stage.require_deps(["one.json", "three.json"], "gates.suites")
