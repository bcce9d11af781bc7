"""Gates that can be asked of rows of ids are; the others say that they were not."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_documents import BPE, made_up, packing, plain, write_documents
from rows_of_ids import LIMITS, QUESTION, all_rows, fetched, prepared

from pico.config import Gates
from pico.data.gates.check import check, refuse
from pico.data.preparation.pipeline import prepare as prepare_text
from pico.data.tokens.tokenizer import load_tokenizer
from pico.expectations.data_docs import write_data_docs


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
    write_data_docs(checked.suites, root / "docs", title="Gates")
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
