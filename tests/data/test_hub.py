"""Datasets through `datasets`, offline: a folder stands for the hub, as the library reads both with the same calls."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pico.config import HubDataset, Source
from pico.data.sources import fetch as sources
from pico.data.sources import hub
from pico.data.sources.wheels import DownloadError
from pico.errors import PicoError

ROWS = {
    "title": ["One", None, "Three", "Four"],
    "text": ["first", "second", None, "fourth"],
    "score": [0.5, 0.25, 1.0, 0.0],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits of Parquet, one of them in two files."""
    data = tmp_path / "dataset" / "data"
    data.mkdir(parents=True)
    for number in range(2):
        part = {name: values[2 * number : 2 * number + 2] for name, values in ROWS.items()}
        pq.write_table(pa.table(part), data / f"train-{number:05d}-of-00002.parquet")
    pq.write_table(pa.table({name: values[:1] for name, values in ROWS.items()}), data / "test-00000-of-00001.parquet")
    return tmp_path / "dataset"


def source(folder: Path, *, split: str = "train", columns: list[str] | None = None, config: str | None = None,
           **settings) -> Source:  # fmt: skip
    dataset = HubDataset(repository=str(folder), revision="main", split=split, columns=columns, config=config)
    return Source(name="mine", domain="notes", licence="own", kind="hub", hub=dataset, **settings)


def texts(own: Source, tmp_path: Path) -> list[str]:
    (tmp_path / "out").mkdir(exist_ok=True)
    sources.fetch_source(own, tmp_path / "out", folder=tmp_path)
    return pq.read_table(tmp_path / "out" / "mine.parquet")["text"].to_pylist()


def test_the_rows_of_the_split_become_documents(folder: Path, tmp_path: Path) -> None:
    assert texts(source(folder), tmp_path) == ["first", "second", "fourth"]
    assert texts(source(folder, split="test"), tmp_path) == ["first"]
    assert texts(source(folder, text_field="title"), tmp_path) == ["One", "Three", "Four"]


def test_several_columns_make_one_document(folder: Path, tmp_path: Path) -> None:
    expected = ["One\n\nfirst", "second", "Three", "Four\n\nfourth"]
    assert texts(source(folder, columns=["title", "text"]), tmp_path) == expected


def test_only_the_columns_in_use_are_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.dataset as ds
    from datasets.packaged_modules.parquet.parquet import Parquet

    asked, real = [], Parquet._generate_tables

    def recorded(self, *arguments, **options):
        asked.append(self.config.columns)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Parquet, "_generate_tables", recorded)
    assert texts(source(folder), tmp_path) == ["first", "second", "fourth"]
    assert asked
    assert all(columns == ["text"] for columns in asked), "the reader of Parquet was not asked"
    # And it does as it is asked: a column whose bytes are no Parquet page is not missed.
    path = next(folder.rglob("train-00000*"))
    score = pq.read_metadata(path).row_group(0).column(2)
    start = score.dictionary_page_offset or score.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + score.total_compressed_size] = b"\xff" * score.total_compressed_size
    path.write_bytes(data)
    with pytest.raises((OSError, pa.ArrowException)):
        ds.dataset(path).to_table()
    assert texts(source(folder), tmp_path) == ["first", "second", "fourth"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_field": "body"}, r"'mine': there is no column 'body'\n  where: .*@main train, .*: title, text, score"),
        ({"columns": ["title", "body"]}, r"there is no column 'body'\n  where: .*title, text, score"),
        ({"split": "validation"}, r"there is no split 'validation'; there are: (train, test|test, train)\n  where: "),
        ({"text_field": "score"}, r"column 'score' holds float, not text"),
        ({"reader": "jsonl"}, r"reader 'jsonl' does not fit kind `hub`"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_by_name(folder: Path, tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(PicoError, match=message) as raised:
        texts(source(folder, **settings), tmp_path)
    assert not isinstance(raised.value, DownloadError), "another try gives the same"
    assert raised.value.mend
    assert not list((tmp_path / "out").iterdir())


def test_other_formats_than_parquet_are_streamed_too(tmp_path: Path) -> None:
    data = tmp_path / "dataset"
    data.mkdir()
    (data / "train.jsonl").write_text('{"text": "one", "n": 1}\n{"text": null, "n": 2}\n{"text": "two", "n": 3}\n')
    assert texts(source(data), tmp_path) == ["one", "two"]
    with pytest.raises(PicoError, match=r"there is no column 'body'\n  where: .*which has: text, n"):
        texts(source(data, text_field="body"), tmp_path)


def test_a_configuration_is_chosen_by_name_and_part_of_the_pin(folder: Path, tmp_path: Path) -> None:
    for name, text in (("small", "of the small one"), ("large", "of the large one")):
        (folder / name).mkdir()
        pq.write_table(pa.table({"text": [text]}), folder / name / "train.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files: small/*.parquet\n"
        "- config_name: large\n  data_files: large/*.parquet\n---\n"
    )
    assert texts(source(folder, config="large"), tmp_path) == ["of the large one"]
    assert hub.pin(HubDataset(repository="o/n", revision="r", split="train", config="large")) == "o/n@r large train"
    with pytest.raises(DownloadError, match="'medium' not found"):
        texts(source(folder, config="medium"), tmp_path)


def test_a_dataset_that_is_not_there_may_be_tried_again(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"source 'mine': the dataset cannot be read"):
        texts(source(tmp_path / "absent"), tmp_path)
