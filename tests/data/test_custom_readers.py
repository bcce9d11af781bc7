"""The user's own readers: the page's example works, DVC sees its file, and every mistake is named with its line."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from flows.stage import Stage
from pico.config import Source
from pico.data.sources import fetch as sources
from pico.data.sources.readers import load_reader_files, read_reader_files
from pico.data.sources.reading import READERS
from pico.errors import PicoError
from pico.plugins import file_hashes

PAGE = Path(__file__).resolve().parents[2] / "docs" / "custom-readers.md"
HEADER = "from pico.data.sources.reading import lines, reader\n\n\n"


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A reader that a test registers is gone after it."""
    before = dict(READERS)
    monkeypatch.setattr("pico.plugins._loaded", {})
    yield
    READERS.clear()
    READERS.update(before)


def load(folder: Path, text: str) -> tuple[str, ...]:
    (folder / "mine.py").write_text(text)
    return load_reader_files(read_reader_files(["mine.py"], folder))


def fetched(folder: Path, **values) -> tuple[dict, list[str]]:
    """The entry of sources.json of the files below corpus/, and their texts."""
    source = Source(**({"name": "own", "domain": "d", "licence": "l", "kind": "files"} | values))
    sources.check_sources([source])
    (folder / "documents").mkdir(exist_ok=True)
    entry = sources.fetch_source(source, folder / "documents", folder=folder / "corpus")
    return entry, pq.read_table(folder / "documents" / "own.parquet")["text"].to_pylist()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus" / "tickets").mkdir(parents=True)
    (tmp_path / "corpus" / "a.letters").write_text("Dear Ann,\nhello.\n===\n\n===\nDear Bob,\nbye.\n")
    tickets = [{"subject": "Lost", "messages": ["Where?", "Here."]}]
    (tmp_path / "corpus" / "tickets" / "1.json").write_text(json.dumps(tickets))
    (tmp_path / "corpus" / "plain.txt").write_text("as ever")
    return tmp_path


def test_the_pages_example_reads_a_corpus(corpus: Path) -> None:
    text = PAGE.read_text()
    python, settings = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("python", "yaml"))
    (corpus / "my_readers.py").write_text(python)
    files = YAML(typ="safe").load(settings)["corpus"]
    user_files = read_reader_files(files["files"], corpus)
    assert load_reader_files(user_files) == ("letters", "tickets")
    found = {values["name"]: fetched(corpus, **values | {"name": "own"}) for values in files["sources"]}
    assert found["letters"][1] == ["Dear Ann,\nhello.", "Dear Bob,\nbye."]
    assert found["letters"][0]["empty"] == 1
    assert found["tickets"][1] == ["Lost\n\nWhere?\n\nHere."]
    origin = [f"my_readers.py sha256:{file_hashes(user_files)['my_readers.py']}"]
    assert [entry["reader_files"] for entry, _ in found.values()] == [origin, origin]
    entry, texts = fetched(corpus, glob="*.txt")
    assert texts == ["as ever"]
    assert "reader_files" not in entry  # as without user files, to the byte


def test_an_edited_file_replaces_its_readers_and_their_endings(corpus: Path) -> None:
    one = '@reader("one", endings=(".letters",))\ndef one(stream, file):\n    yield "{text}"\n'
    load(corpus, HEADER + one.format(text="first"))
    assert fetched(corpus, glob="*.letters")[1] == ["first"]
    load(corpus, HEADER + one.format(text="second"))
    assert fetched(corpus, glob="*.letters")[1] == ["second"]
    load(corpus, HEADER + one.format(text="third").replace(', endings=(".letters",)', ""))
    assert fetched(corpus, glob="*.letters", reader="one")[1] == ["third"]
    with pytest.raises(PicoError, match=r"no reader is known for files that end in '\.letters'"):
        fetched(corpus, glob="*.letters")


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ('@reader("jsonl")\ndef mine(stream, file): yield "a"\n', "a reader named 'jsonl' is registered already", 4),
        ('@reader("auto")\ndef mine(stream, file): yield "a"\n', "a reader named 'auto' is registered already", 4),
        (
            '@reader("x", endings=(".md",))\ndef mine(stream, file): yield "a"\n',
            r"'\.md' are read by 'text' already",
            4,
        ),
        ('@reader("x", endings=("xyz",))\ndef mine(stream, file): yield "a"\n', "'xyz' is no ending of a file", 4),
        ('@reader("x", endings=(".gz",))\ndef mine(stream, file): yield "a"\n', r"'\.gz' is no ending of a file", 4),
        ("def mine(:\n", "not valid Python", 4),
        ("1 / 0\n", "ZeroDivisionError", 4),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_line_and_leaves_nothing(tmp_path, text, message, line) -> None:
    before = dict(READERS)
    with pytest.raises(PicoError, match=message) as caught:
        load(tmp_path, HEADER + text)
    assert re.search(rf"mine\.py, line {line}$", caught.value.where)
    assert caught.value.mend
    assert before == READERS


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('    yield "a"\n    raise ValueError("bad year")\n', r"ValueError: bad year, while it read .*a\.letters"),
        ("    yield 5\n", "reader 'x' gave int, not text"),
    ],
)
def test_what_a_reader_raises_names_its_line_and_the_file_that_was_read(corpus: Path, body: str, message: str) -> None:
    load(corpus, f'{HEADER}@reader("x", endings=(".letters",))\ndef mine(stream, file):\n{body}')
    with pytest.raises(PicoError, match=message) as caught:
        fetched(corpus, glob="*.letters")
    assert "source 'own'" in caught.value.what
    assert re.search(r"mine\.py, line \d+$", caught.value.where)


def test_damage_of_the_file_that_is_read_is_not_blamed_on_the_reader(corpus: Path) -> None:
    body = "def mine(stream, file):\n    yield from lines(stream, file.name)\n"
    load(corpus, f'{HEADER}@reader("x", endings=(".letters",))\n{body}')
    (corpus / "corpus" / "a.letters").rename(corpus / "corpus" / "a.letters.gz")
    with pytest.raises(PicoError, match=r"a\.letters\.gz cannot be read") as caught:
        fetched(corpus, glob="*.letters.gz")
    assert "mine.py" not in str(caught.value)


def test_a_file_that_dvc_would_not_see_change_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("")
    stage = Stage("fetch", None)
    (tmp_path / "dvc.yaml").write_text("stages: {fetch: {deps: [corpus]}}")
    with pytest.raises(PicoError, match=r"mine\.py is no dep of stage fetch") as caught:
        stage.require_deps(["mine.py"], "corpus.files")
    assert "- mine.py" in caught.value.mend
    (tmp_path / "dvc.yaml").write_text("stages: {fetch: {deps: [corpus, mine.py]}}")
    stage.require_deps(["mine.py"], "corpus.files")
