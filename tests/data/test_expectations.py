"""The gates: good data pass; each planted fault is caught by its rule, with its rows and its setting named."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_documents import BPE, cleaning, made_up, packing, small_corpus, write_documents

from pico.data.expectations import check, refuse
from pico.data.heldout import write_heldout
from pico.data.loader import TokenRows, heldout_rows
from pico.data.prepare import prepare
from pico.errors import PicoError
from pico.sections import Gates

LIMITS = {
    "min_documents": 100, "min_document_bytes": 1, "max_document_bytes": 5000, "min_mean_document_bytes": 20,
    "max_control_fraction": 0.02, "min_domain_fraction": 0.005, "max_domain_fraction": 0.9, "min_train_rows": 64,
    "min_heldout_rows": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound")
    prepare(small_corpus(root / "documents"), root / "tokens", tokenizer=BPE, cleaning=cleaning(), packing=packing(),
            vocab_size=300, runs=root / "runs")  # fmt: skip
    return root


@pytest.fixture
def data(sound, tmp_path):
    """A copy of the sound data, to be spoilt."""
    return shutil.copytree(sound, tmp_path / "data")


def gates_of(root, seq_len=16, vocab_size=300, **limits):
    return check(root / "documents", root / "tokens", gates=Gates(**(LIMITS | limits)), seq_len=seq_len,
                 vocab_size=vocab_size)  # fmt: skip


def failed(results):
    return {(result["gate"], result["param"]) for result in results if not result["passed"]}


def test_sound_data_pass_every_gate_and_the_results_are_json_without_times(sound):
    results = gates_of(sound)
    assert failed(results) == set()
    refuse(results)
    assert results == gates_of(sound) == json.loads(json.dumps(results, allow_nan=False))
    assert {result["gate"] for result in results} >= {
        "documents.schema", "documents.nulls", "documents.identity", "documents.length", "documents.characters",
        "documents.deduplicated", "tokens.schema", "tokens.row_length", "tokens.range", "tokens.eos", "tokens.overlap",
        "tokens.domain_mix",
    }  # fmt: skip


def test_every_limit_is_the_one_that_the_setting_sets(sound):
    unmet = {
        "min_documents": 1000, "min_document_bytes": 30, "max_document_bytes": 100, "min_mean_document_bytes": 5000,
        "min_domain_fraction": 0.5, "max_domain_fraction": 0.5, "min_train_rows": 10**6, "min_heldout_rows": 7,
    }  # fmt: skip
    results = gates_of(sound, seq_len=15, vocab_size=299, **unmet)
    assert failed(results) == {
        ("documents.count", "gates.min_documents"),
        ("documents.length", "gates.min_document_bytes"),
        ("documents.length", "gates.max_document_bytes"),
        ("documents.mean_length", "gates.min_mean_document_bytes"),
        ("tokens.domain_mix", "gates.min_domain_fraction"),
        ("tokens.domain_mix", "gates.max_domain_fraction"),
        ("tokens.train_rows", "gates.min_train_rows"),
        ("tokens.heldout_rows", "gates.min_heldout_rows"),
        ("tokens.row_length", "packing.seq_len"),
        ("tokens.range", "model.vocab_size"),
    }


def test_a_failure_names_rule_rows_and_setting(sound, tmp_path):
    with pytest.raises(PicoError) as caught:
        refuse(gates_of(sound, max_document_bytes=150), tmp_path / "gates.json")
    text = str(caught.value)
    assert "documents.length: bytes of the longest document" in text
    assert "limit 150 (params.yaml: gates.max_document_bytes)" in text
    assert "source=novels, row=" in text
    assert "gates.json" in text


def spoil_documents(root, texts):
    """Replaces the verse; the tokens are made from it as it is."""
    write_documents(root / "documents", {"novels": ("prose", made_up(120, 1)), "odes": ("verse", texts)})
    shutil.rmtree(root / "tokens")
    prepare(root / "documents", root / "tokens", tokenizer=BPE, cleaning=cleaning(), packing=packing(),
            vocab_size=300, runs=root / "runs")  # fmt: skip


def test_control_characters_are_found_where_they_are(data):
    spoil_documents(data, [*made_up(90, 3), "ab\x00\x07\x1bcd\ufffd" * 3, "tabs\tand\nlines\r\nare fine"])
    results = gates_of(data, min_document_bytes=1)
    assert failed(results) == {("documents.characters", "gates.max_control_fraction")}
    result = next(result for result in results if not result["passed"])
    assert [(example["source"], example["row"]) for example in result["examples"]] == [("odes", 90)]
    assert result["observed"] == pytest.approx(4 / 8)


def rewrite(path, table):
    pq.write_table(table, path)


def test_a_null_and_an_altered_text_are_found(data):
    path = data / "documents/odes.parquet"
    columns = pq.read_table(path).to_pydict()
    columns["text"][4] = None
    columns["text"][7] += "!"
    rewrite(path, pa.table(columns))
    results = gates_of(data)
    assert failed(results) == {("documents.nulls", ""), ("documents.identity", "")}
    rows = {(r["gate"], e["row"]) for r in results if not r["passed"] for e in r["examples"]}
    assert rows == {("documents.nulls", 4), ("documents.identity", 4), ("documents.identity", 7)}


def test_documents_that_were_not_tokenized_are_noticed(data):
    novels = made_up(120, 1)
    odes = [*made_up(90, 3), "one more ode than was tokenized"]
    sources = {"novels": ("prose", novels), "essays": ("prose", made_up(60, 2)), "odes": ("verse", odes)}
    write_documents(data / "documents", sources)
    assert failed(gates_of(data)) == {("documents.deduplicated", "")}


def test_another_schema_stops_the_rest(data):
    path = data / "documents/odes.parquet"
    rewrite(path, pq.read_table(path).drop_columns(["domain"]))
    shard = next((data / "tokens/train").glob("*.parquet"))
    rewrite(shard, pa.table({"input_ids": pa.array([[1, 2]], pa.list_(pa.int64()))}))
    results = gates_of(data)
    assert failed(results) == {("documents.schema", ""), ("tokens.schema", "")}
    assert [e["file"] for r in results for e in r["examples"]] == ["odes.parquet", f"train/{shard.name}"]
    shutil.rmtree(data / "tokens/train")
    assert ("tokens.schema", "") in failed(gates_of(data))
    (data / "documents/odes.parquet").unlink()
    assert ("documents.schema", "") in failed(gates_of(data))


def respell(data, change):
    """Lets `change` alter the training rows (rows, 17) of the first shard in place."""
    shard = min((data / "tokens/train").glob("*.parquet"))
    rows = np.array(pq.read_table(shard)["input_ids"].to_pylist(), np.int32)
    change(rows)
    rewrite(shard, pa.table({"input_ids": pa.array(rows.tolist(), pa.list_(pa.int32()))}))


def test_a_held_out_row_in_training_is_found(data):
    leaked = heldout_rows(data / "tokens")["verse"][0]
    respell(data, lambda rows: rows.__setitem__(slice(3, 5), leaked[1:3]))
    results = gates_of(data)
    assert ("tokens.overlap", "") in failed(results)
    found = [e for r in results if r["rule"] == "held-out rows that are training rows" for e in r["examples"]]
    assert [(e["file"], e["row"]) for e in found] == [("heldout/verse.parquet", 1), ("heldout/verse.parquet", 2)]


def test_a_held_out_document_in_training_is_found_at_another_place_in_its_row(data):
    rows = TokenRows(data / "tokens/train").rows(np.arange(1)).copy()
    rows[0, 3:9] = [0, 40, 41, 42, 43, 0]
    ids, n_bytes = heldout_rows(data / "tokens")["verse"]
    ids[2, 8:14] = [0, 40, 41, 42, 43, 0]
    write_heldout(data / "tokens/heldout/verse.parquet", ids, n_bytes)
    respell(data, lambda training: training.__setitem__(0, rows[0]))
    results = gates_of(data)
    found = [r for r in results if r["gate"] == "tokens.overlap" and not r["passed"]]
    assert [r["rule"].split(",")[0] for r in found] == ["held-out documents that are training documents"]
    assert [(e["file"], e["row"]) for e in found[0]["examples"]] == [("heldout/verse.parquet", 2)]


def test_wrong_ids_eos_and_counts_are_found(data):
    def spoil(rows):
        rows[0, :3] = [0, 0, 5]
        rows[1, 4] = -1
        rows[2, 4] = 900

    respell(data, spoil)
    results = gates_of(data)
    assert failed(results) >= {("tokens.eos", ""), ("tokens.range", ""), ("tokens.range", "model.vocab_size")}
    rows = {(r["rule"], e["row"]) for r in results if not r["passed"] for e in r["examples"]}
    assert {("the lowest id", 1), ("the highest id has an entry", 2)} <= rows


def test_wrong_byte_counts_of_held_out_rows_are_found(data):
    ids, n_bytes = heldout_rows(data / "tokens")["prose"]
    n_bytes[3] += 1
    write_heldout(data / "tokens/heldout/prose.parquet", ids, n_bytes)
    assert failed(gates_of(data)) == {("tokens.heldout_bytes", "")}


def test_ragged_rows_are_found(data):
    shard = min((data / "tokens/train").glob("*.parquet"))
    rows = pq.read_table(shard)["input_ids"].to_pylist()
    rows[5] = rows[5][:-2]
    rows[6] = []
    rewrite(shard, pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32()))}))
    results = gates_of(data)
    assert ("tokens.row_length", "packing.seq_len") in failed(results)
    lengths = next(result for result in results if result["gate"] == "tokens.row_length")
    assert [(example["row"], example["length"]) for example in lengths["examples"]] == [(5, 15), (6, 0)]
