"""Rows that are token ids already: taken as they are, accounted for row by row."""

import gzip
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_documents import BPE, made_up, packing, plain, write_documents
from rows_of_ids import ROW, all_rows, fetched, prepared, source

from pico.config import HubDataset, Source
from pico.data.preparation import token_rows as row_blocks
from pico.data.preparation.pipeline import prepare as prepare_text
from pico.data.sources import fetch as sources
from pico.data.tokens.loader import heldout_rows
from pico.data.tokens.lookup import Course, find_text, show_step
from pico.data.tokens.packing import write_rows
from pico.data.tokens.tokenizer import EOS, load_tokenizer
from pico.errors import PicoError
from pico.files import read_json, sha256_file


def contents(folder):
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def sidecar(tokens, part):
    return [entry for path in sorted((tokens / part).glob("*.parquet")) for entry in pq.read_table(path).to_pylist()]


def test_every_row_is_trained_on_or_held_out_as_it_is_and_in_its_order(published, made):
    root, provenance = made
    theirs, ours = all_rows(published / "rows"), all_rows(root / "tokens" / "train")
    held = sidecar(root / "tokens", "heldout-provenance")
    entry = provenance["domains"]["web"]
    assert entry["documents_read"] == len(theirs) == entry["train_documents"] + entry["heldout_documents"]
    assert 0 < entry["heldout_documents"] < 0.25 * len(theirs)
    assert entry["tokens"] == theirs.size
    numbers = [segment["document_row"] for segment in sidecar(root / "tokens", "train-provenance")]
    assert numbers == sorted(numbers)
    assert np.array_equal(ours, theirs[numbers])
    assert len(held) == min(6, entry["heldout_documents"])
    assert np.array_equal(heldout_rows(root / "tokens")["web"][0], theirs[[e["document_row"] for e in held]])
    assert not {e["document_row"] for e in held} & set(numbers)
    assert len(theirs) - len(numbers) == entry["heldout_documents"]
    assert (provenance["unit"], provenance["shuffled"]) == ("row", False)
    assert provenance["total"]["tail_tokens_dropped"] == 0
    assert not any(provenance["total"]["dropped"].values())


def test_the_sidecar_and_the_documents_name_file_and_row_of_each(published, made):
    root, _ = made
    documents = pq.read_table(root / "documents" / "ready.parquet").to_pylist()
    ours = all_rows(root / "tokens" / "train")
    for segment in sidecar(root / "tokens", "train-provenance"):
        document = documents[segment["document_row"]]
        assert (document["id"], segment["position"], segment["offset"], segment["length"]) == (
            segment["document"], 0, 0, ROW,
        )  # fmt: skip
        there = pq.read_table(published / "rows" / document["file"])["input_ids"][document["row"]].as_py()
        assert there == document["input_ids"] == ours[segment["row"]].tolist()


def test_bytes_are_those_of_the_text_that_the_ids_stand_for(published, made):
    root, provenance = made
    tokenizer = load_tokenizer(root / "tokens" / "tokenizer")
    size = sum(len(tokenizer.decode(row.tolist()).encode()) for row in all_rows(published / "rows"))
    assert abs(provenance["total"]["bytes"] - size) < 0.01 * size  # a row cuts characters in two
    assert 0 < provenance["unigram"]["web"] < 12


def test_a_step_is_shown_with_its_text_and_a_string_is_found(made):
    root, _ = made
    tokenizer = load_tokenizer(root / "tokens" / "tokenizer")
    shown = show_step(root / "tokens", Course(5, 4, 1), 2)
    for row, ids in zip(shown, all_rows(root / "tokens" / "train")[4:8], strict=True):
        assert row["ids"] == ids.tolist()
        assert [segment["length"] for segment in row["segments"]] == [ROW]
        text = tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        assert row["segments"][0]["text"] == text.removesuffix(EOS)
    word = tokenizer.decode(shown[0]["ids"]).split()[-2]
    assert 4 in {hit["row"] for hit in find_text(root / "tokens", Course(5, 4, 1), word, limit=10**6)}


def test_rows_are_shuffled_by_the_seed_where_that_is_asked_for(published, made, tmp_path):
    documents = fetched(published, tmp_path)
    provenance = prepared(documents, packing=packing(shuffle=True))
    ours, straight = all_rows(tmp_path / "tokens" / "train"), all_rows(made[0] / "tokens" / "train")
    assert not np.array_equal(ours, straight)
    assert sorted(map(bytes, ours)) == sorted(map(bytes, straight))
    assert provenance["shuffled"] is True
    held = [contents(root / "tokens" / "heldout") for root in (tmp_path, made[0])]
    assert held[0] == held[1]


def test_a_dataset_streamed_by_datasets_gives_the_same_tokens(published, made, tmp_path):
    hub = HubDataset(repository=str(published / "rows"), revision="main", split="train")
    documents = fetched(published, tmp_path, kind="hub", hub=hub)
    assert read_json(documents / "sources.json")[0]["tokens"] == all_rows(published / "rows").size
    prepared(documents)
    assert contents(tmp_path / "tokens") == contents(made[0] / "tokens")
    rows = pq.read_table(documents / "ready.parquet")
    assert set(rows["file"].to_pylist()) == {"train"}
    assert rows["row"].to_pylist() == list(range(rows.num_rows))


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.uint16()), pa.list_(pa.int32(), ROW)])
def test_ids_may_be_stored_in_any_type_and_compressed(published, made, tmp_path, kind):
    folder = tmp_path / "rows"
    folder.mkdir()
    for path in (published / "rows").iterdir():
        table = pq.read_table(path)
        pq.write_table(table.cast(pa.schema([("input_ids", kind)])), tmp_path / "other.parquet")
        (folder / f"{path.name}.gz").write_bytes(gzip.compress((tmp_path / "other.parquet").read_bytes()))
    documents = fetched(published, tmp_path, folder)
    prepared(documents)
    assert contents(tmp_path / "tokens") == contents(made[0] / "tokens")


def test_max_bytes_takes_four_bytes_an_id_and_equal_rows_are_dropped_but_for_one(published, tmp_path):
    theirs = all_rows(published / "rows")
    documents = fetched(published, tmp_path, max_bytes=4 * ROW * 70 + 5)
    assert read_json(documents / "sources.json")[0]["documents"] == 70
    twice = tmp_path / "twice" / "rows"
    twice.mkdir(parents=True)
    write_rows(twice / "a.parquet", np.concatenate([theirs[:90], theirs[3:5]]))
    total = prepared(fetched(published, tmp_path / "twice", twice))["total"]
    assert (total["documents_read"], total["duplicates_dropped"], total["documents"]) == (92, 2, 90)


def test_ids_need_the_tokenizer_that_made_them_and_cannot_be_mixed_with_text(made, tmp_path):
    with pytest.raises(
        PicoError, match=r"token ids, which mean nothing without the tokenizer(.|\n)*tokenizer.kind = bpe"
    ):
        prepared(made[0] / "documents", tokenizer=BPE)
    text = Source(name="mine", domain="notes", licence="own", kind="files")
    sources.check_sources([source(), source(name="more")])
    with pytest.raises(PicoError, match=r"source 'ready' is token ids .*, source 'mine' is text: they cannot be mixed"):
        sources.check_sources([text, source()])
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.txt").write_text("text")
    with pytest.raises(PicoError, match=r"a\.txt: reader `tokens` reads Parquet files"):
        sources.fetch_source(source(), tmp_path, folder=tmp_path / "corpus")


def test_what_we_write_is_read_by_datasets_with_the_published_columns(made, tmp_path):
    import datasets

    ours = made[0] / "tokens" / "train"
    for streaming in (False, True):
        found = datasets.load_dataset("parquet", data_files=f"{ours}/*.parquet", split="train", streaming=streaming,
                                      cache_dir=str(tmp_path / "cache"))  # fmt: skip
        assert list(found.features) == ["input_ids"]
        assert found.features["input_ids"] == datasets.List(datasets.Value("int32"))
        assert np.array_equal(np.array([row["input_ids"] for row in found]), all_rows(ours))
    again = datasets.load_dataset(str(ours), split="train", cache_dir=str(tmp_path / "cache"))
    assert again.num_rows == len(all_rows(ours))


@pytest.mark.parametrize("function", ["index_rows", "keep_block", "lay_block"])
def test_after_a_kill_the_next_run_goes_on_and_gives_the_same_bytes(published, made, tmp_path, function, monkeypatch):
    monkeypatch.setattr("pico.data.sources.token_rows.ROW_GROUP_IDS", ROW * 300)  # of ROWS rows at least
    monkeypatch.setattr("pico.data.sources.token_rows.ROWS", 100)
    documents = fetched(published, tmp_path)
    blocks = pq.ParquetFile(documents / "ready.parquet").num_row_groups
    assert blocks > 3
    program = (
        "import os, signal; from pathlib import Path\n"
        "from pico.data.preparation import token_rows; import rows_of_ids\n"
        f"real, calls = token_rows.{function}, []\n"
        "def counted(*arguments):\n"
        "    real(*arguments); calls.append(1)\n"
        "    if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"token_rows.{function} = counted\n"
        "rows_of_ids.prepared(Path('documents').resolve())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=False)
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / "tokens").exists()
    calls, real = [], getattr(row_blocks, function)
    monkeypatch.setattr(row_blocks, function, lambda *arguments: (calls.append(1), real(*arguments))[1])
    prepared(documents)
    assert len(calls) == blocks - 2
    table = "documents/ready.parquet"  # its row groups are those of the documents, here smaller ones
    ours, theirs = (root / "tokens" for root in (tmp_path, made[0]))
    assert contents(ours) | {table: ""} == contents(theirs) | {table: ""}
    assert pq.read_table(ours / table).equals(pq.read_table(theirs / table))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_of_ray_give_the_same_bytes_as_this_process(published, made, tmp_path, workers):
    fetched(published, tmp_path)
    program = (
        "from pathlib import Path; import ray; from rows_of_ids import prepared;"
        f"ray.init(num_cpus={workers}, include_dashboard=False, log_to_driver=False);"
        "prepared(Path('documents').resolve())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert contents(tmp_path / "tokens") == contents(made[0] / "tokens")


def test_text_too_keeps_its_order_where_nothing_is_shuffled(tmp_path):
    texts = made_up(60, 8)
    documents = write_documents(tmp_path / "documents", {"own": ("mine", texts)}, row_group=7)
    provenance = prepare_text(documents, tmp_path / "tokens", tokenizer=BPE, cleaning=plain(), vocab_size=300,
                              packing=packing(shuffle=False), runs=tmp_path / "runs")  # fmt: skip
    numbers = [segment["document_row"] for segment in sidecar(tmp_path / "tokens", "train-provenance")]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == provenance["total"]["train_documents"]
