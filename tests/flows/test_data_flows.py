"""Stages `prepare` and `validate` as flows: what they publish, and that a failed gate leaves no out to train on."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_documents import made_up, small_corpus
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import TaskRunSort
from ruamel.yaml import YAML

from flows.prepare import prepare
from flows.stage import Stage
from flows.validate import validate
from pico.config import parse_params
from pico.errors import PicoError

PARAMS = Path(__file__).parents[2] / "params.yaml"


def stage(name: str, **gates: Any) -> Stage:
    """A stage with the shipped settings, but for a small corpus."""
    values = YAML(typ="safe").load(PARAMS)
    values["tokenizer"] = {"kind": "bpe", "vocab_size": 300, "pretrained": None}
    values["packing"] |= {"seq_len": 16, "heldout_fraction": 0.1, "heldout_rows": 6}
    values["gates"] |= {"max_domain_fraction": 0.9, **gates}
    return Stage(name, parse_params(values))


@pytest.mark.slow
def test_tokens_are_published_gates_pass_and_both_are_seen(
    server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small_corpus(Path("data/documents"))
    (folder := Path("data/benchmarks/passages")).mkdir(parents=True)
    pq.write_table(pa.table({"text": made_up(20, 9)}), folder / "test.parquet")
    flow(name="prepare")(prepare)(stage("prepare"))
    account = json.loads(Path("reports/data.json").read_text())
    assert Path("data/tokens/provenance.json").read_bytes() == Path("reports/data.json").read_bytes()
    assert account["total"]["documents"] == 270
    flow(name="validate")(validate)(stage("validate"))
    gates = Path("reports/gates.json").read_bytes()
    assert all(result["passed"] for result in json.loads(gates))
    assert not list(Path("runs/prepare").iterdir())
    assert not Path("runs/validate").exists()
    docs = {path.name: path.read_bytes() for path in Path("reports/data_docs").iterdir()}
    assert set(docs) == {"index.html", "documents.html", "tokens.html"}
    profile = Path("data/profile/profile.json").read_bytes()
    with get_client(sync_client=True) as client:
        assert {artifact.key for artifact in client.read_artifacts()} >= {"prepare-domains", "validate-gates"}
        tasks = {run.name.rsplit("-", 1)[0] for run in client.read_task_runs(sort=TaskRunSort.END_TIME_DESC)}
    assert tasks >= {
        "sample_documents",
        "clean_blocks",
        "hold_out",
        "make_tokenizer",
        "tokenize",
        "pack",
        "write_shards",
        "check_gates",
    }

    with pytest.raises(
        PicoError, match=r"documents\.count[\s\S]*gates\.min_documents[\s\S]*runs/validate/data_docs/index\.html"
    ):
        flow(name="validate")(validate)(stage("validate", min_documents=1000))
    assert not any(Path(out).exists() for out in ("reports/gates.json", "reports/data_docs", "data/profile"))
    assert "✗ failed" in Path("runs/validate/data_docs/documents.html").read_text()
    details = json.loads(Path("runs/validate/gates.json").read_text())
    assert [result["gate"] for result in details if not result["passed"]] == ["documents.count"]
    flow(name="validate")(validate)(stage("validate"))
    assert Path("reports/gates.json").read_bytes() == gates
    assert not Path("runs/validate/gates.json").exists()
    assert {path.name: path.read_bytes() for path in Path("reports/data_docs").iterdir()} == docs
    assert Path("data/profile/profile.json").read_bytes() == profile

    suite = {"file": "mine.yaml", "on": "documents"}
    Path("mine.yaml").write_text("expectations: [{type: expect_table_row_count_to_equal, kwargs: {value: 272}}]")
    Path("dvc.yaml").write_text("stages: {validate: {deps: []}}")
    with pytest.raises(PicoError, match=r"mine\.yaml is no dep of stage validate"):
        flow(name="validate")(validate)(stage("validate", suites=[suite]))
    Path("dvc.yaml").write_text("stages: {validate: {deps: [mine.yaml]}}")
    flow(name="validate")(validate)(stage("validate", suites=[suite]))
    assert Path("reports/gates.json").read_bytes() == gates
    assert "✓ passed" in Path("reports/data_docs/suite-mine.html").read_text()
    assert [one["gate"] for one in json.loads(Path("reports/data_docs/suites.json").read_text())] == ["mine"]
    Path("mine.yaml").write_text("expectations: [{type: expect_table_row_count_to_equal, kwargs: {value: 1}}]")
    with pytest.raises(PicoError, match="mine: table row count to equal: observed 272, limit value 1"):
        flow(name="validate")(validate)(stage("validate", suites=[suite]))
    assert not Path("reports/gates.json").exists()
