"""Each fault planted in tokens is caught by its rule: ids, rows, counts, held-out documents in training."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gate_cases import failed, gates_of, rewrite
from made_documents import made_up, write_documents

from pico.data.preparation.shards import write_heldout
from pico.data.tokens.loader import TokenRows, heldout_rows
from pico.errors import PicoError
from pico.files import read_json, write_json


def test_a_domain_without_tokens_is_found(data):
    provenance = read_json(data / "tokens/provenance.json")
    provenance["domains"]["verse"]["train_tokens"] = 0
    write_json(data / "tokens/provenance.json", provenance)
    (data / "tokens/heldout/verse.parquet").unlink()
    results = gates_of(data, max_domain_fraction=1.0)
    assert failed(results) == {
        ("tokens.domain_mix", "gates.min_domain_fraction"), ("tokens.heldout_rows", "gates.min_heldout_rows")
    }  # fmt: skip
    assert {e["domain"] for r in results if not r["passed"] for e in r["examples"]} == {"verse"}


def test_documents_that_were_not_tokenized_are_noticed(data):
    novels = made_up(120, 1)
    odes = [*made_up(90, 3), "one more ode than was tokenized"]
    sources = {"novels": ("prose", novels), "essays": ("prose", made_up(60, 2)), "odes": ("verse", odes)}
    write_documents(data / "documents", sources)
    with pytest.raises(PicoError, match=r"novels\.parquet has 121 documents.* 120 in[\s\S]*dvc repro prepare"):
        gates_of(data)


def spoil_uses(data, change):
    """Lets `change` alter the rows of the table of uses of the odes."""
    path = data / "tokens/documents/odes.parquet"
    rows = pq.read_table(path).to_pylist()
    change(rows)
    rewrite(path, pa.Table.from_pylist(rows, pq.read_schema(path)))


def test_uses_of_other_documents_are_refused(data):
    spoil_uses(data, lambda rows: rows[44].update(id="0" * 64))
    with pytest.raises(PicoError, match=r"its id is 0{64}[\s\S]*odes, row 44[\s\S]*dvc repro prepare"):
        gates_of(data)


@pytest.mark.parametrize(("use", "other"), [("train", "tail"), ("heldout", "train"), ("train", "heldout")])
def test_uses_that_the_published_rows_contradict_are_refused(data, use, other):
    row = next(
        number for number, entry in enumerate(pq.read_table(data / "tokens/documents/odes.parquet").to_pylist())
        if entry["use"] == use
    )  # fmt: skip
    spoil_uses(data, lambda rows: rows[row].update(use=other))
    with pytest.raises(PicoError, match=rf"disagree on odes, row {row}: [\s\S]*its use is {other}"):
        gates_of(data)


def test_uses_that_do_not_add_up_to_the_provenance_are_refused(data):
    provenance = read_json(data / "tokens/provenance.json")
    provenance["domains"]["prose"]["duplicates_dropped"] += 1
    write_json(data / "tokens/provenance.json", provenance)
    with pytest.raises(PicoError, match="disagree on prose: duplicates_dropped is 3, and 2 by the uses"):
        gates_of(data)


def test_a_missing_table_of_uses_is_named(data):
    (data / "tokens/documents/odes.parquet").unlink()
    with pytest.raises(PicoError, match=r"documents/odes\.parquet cannot be read[\s\S]*dvc repro prepare"):
        gates_of(data)


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
