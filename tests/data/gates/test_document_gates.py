"""Each fault planted in documents is caught by its rule: leaks, duplicates, empty domains, odd characters."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gate_cases import QUESTION, SHORT, failed, gates_of, only_failure, rewrite, sha256, similar_pair, spoil_documents
from made_documents import made_up

from pico.data.gates.check import refuse
from pico.data.tokens.hashing import is_low
from pico.errors import PicoError


def test_control_characters_are_found_where_they_are(data):
    spoil_documents(data, [*made_up(90, 3), "ab\x00\x07\x1bcd\ufffd" * 3, "tabs\tand\nlines\r\nare fine"])
    result = only_failure(gates_of(data))
    assert (result["gate"], result["param"]) == ("documents.characters", "gates.max_control_fraction")
    assert [(example["source"], example["row"]) for example in result["examples"]] == [("odes", 90)]
    assert result["observed"] == pytest.approx(4 / 8)


def test_a_benchmark_question_in_a_training_document_is_found(data):
    # Other case, other quotes, other punctuation and line breaks, in the middle of another text.
    pasted = QUESTION.replace(", ", ' - "').replace("deep sea", "DEEP\nSEA").replace("?", "!!")
    leaks = [f"{n} words before it. {pasted} Words after it." for n in range(40)]
    leak = next(text for text in leaks if not is_low(sha256(text), 0.1))
    spoil_documents(data, [*made_up(90, 3), leak])
    result = only_failure(gates_of(data))
    assert (result["gate"], result["param"]) == ("documents.contamination", "gates.max_contaminated_fraction")
    assert (result["observed"], result["failures"]) == (pytest.approx(1 / 22), 1)
    assert result["examples"] == [
        {"benchmark": "sciences/validation", "example": 0, "source": "odes", "row": 90, "id": sha256(leak),
         "text": QUESTION[:100]}
    ]  # fmt: skip
    with pytest.raises(PicoError, match=r"contamination[\s\S]*max_contaminated_fraction[\s\S]*example=0, source=odes"):
        refuse([result])
    assert failed(gates_of(data, max_contaminated_fraction=0.05)) == set()


def test_a_short_question_is_looked_for_as_a_whole_and_a_shared_phrase_is_none(data):
    leaks = [f"{n} " + SHORT.lower().rstrip("?") + " he asked" for n in range(40)]
    leak = next(text for text in leaks if not is_low(sha256(text), 0.1))
    phrase = "Which of these organisms, found in the deep sea near hydrothermal vents was it"  # twelve words of it
    spoil_documents(data, [*made_up(90, 3), leak, phrase])
    result = only_failure(gates_of(data))
    assert [example["example"] for example in result["examples"]] == [1]


def test_a_held_out_document_may_hold_a_question(data):
    leaks = [f"{n} words before it. {QUESTION}" for n in range(400)]
    spoil_documents(data, [*made_up(90, 3), next(text for text in leaks if is_low(sha256(text), 0.1))])
    assert failed(gates_of(data)) == set()


def test_a_near_duplicate_left_in_training_is_found(data):
    one, two = similar_pair(heldout=False)
    spoil_documents(data, [*made_up(90, 3), one, two])
    result = only_failure(gates_of(data))
    assert (result["gate"], result["param"]) == ("documents.near_duplicates", "gates.max_near_duplicate_fraction")
    found = {(e["source"], e["row"], e["id"], e["other_source"], e["other_row"]) for e in result["examples"]}
    assert found == {("odes", 90, sha256(one), "odes", 91), ("odes", 91, sha256(two), "odes", 90)}
    assert all(example["similarity"] > 0.85 for example in result["examples"])


def test_a_near_duplicate_across_training_and_held_out_is_found(data):
    heldout, trained = similar_pair(heldout=True)
    spoil_documents(data, [*made_up(90, 3), trained, heldout])
    results = gates_of(data)
    assert failed(results) == {
        ("documents.heldout_near_duplicates", "gates.max_heldout_near_duplicate_fraction"),
        ("documents.heldout_overlap", "gates.max_heldout_overlap"),
        ("documents.heldout_domain_overlap", "gates.max_heldout_domain_overlap"),
    }
    near = next(result for result in results if result["gate"] == "documents.heldout_near_duplicates")
    assert [(e["id"], e["other_id"]) for e in near["examples"]] == [(sha256(heldout), sha256(trained))]
    overlap = next(result for result in results if result["gate"] == "documents.heldout_overlap")
    assert [(e["source"], e["row"]) for e in overlap["examples"]] == [("odes", 91)]
    # With a reference of few documents, every document is still compared with it: the pair is seen from one side.
    few = gates_of(data, compared_documents=20)
    assert ("documents.heldout_overlap", "gates.max_heldout_overlap") in failed(few)


def test_few_compared_documents_find_what_they_are_compared_with(data):
    one, _ = similar_pair(heldout=False)
    spoil_documents(data, [*made_up(90, 3), *(one + f" {n}" for n in range(12))])
    shares = []
    for count in (10_000, 60):
        results = gates_of(data, compared_documents=count)
        shares.append(next(r["observed"] for r in results if r["gate"] == "documents.near_duplicates"))
    assert 0 < shares[1] <= shares[0]


def test_an_empty_domain_is_found(data):
    path = data / "documents/odes.parquet"
    rewrite(path, pq.read_table(path).slice(0, 0))
    result = only_failure(gates_of(data))
    assert (result["gate"], result["param"], result["observed"]) == (
        "documents.domains", "gates.min_domain_documents", 0
    )  # fmt: skip
    assert [example["domain"] for example in result["examples"]] == ["verse"]


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
