"""`pico data show` and `find`: the rows that training takes, their documents, and the steps that saw a string."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_documents import BPE, cleaning, made_up, packing, write_documents

from pico.data.lookup import Course, course_of_run, find_text, show_step
from pico.data.preparation.pipeline import prepare
from pico.data.tokens.loader import TokenRows, batch_indices
from pico.data.tokens.tokenizer import load_tokenizer
from pico.errors import PicoError
from pico.files import sha256_file, write_json

MARKED = "été 日本 xylophone"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("lookup")
    texts = made_up(80, 1)
    texts[17] += f" {MARKED} ends"
    folder = write_documents(root / "documents", {"novels": ("prose", texts), "odes": ("verse", made_up(40, 2))})
    prepare(folder, root / "tokens", tokenizer=BPE, cleaning=cleaning(), vocab_size=300, runs=root / "runs",
            packing=packing(seq_len=64, heldout_fraction=0.02, rows_per_shard=20))  # fmt: skip
    return folder, root / "tokens"


def course_of(tokens, epochs=2.5, batch_size=7):
    rows = TokenRows(tokens / "train").n_rows
    return Course(int(epochs * rows / batch_size), batch_size, seed=3)


def test_a_step_shows_the_rows_of_its_update_and_their_documents(made):
    folder, tokens = made
    rows, tokenizer, course = TokenRows(tokens / "train"), load_tokenizer(tokens / "tokenizer"), course_of(tokens)
    texts = {name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("novels", "odes")}
    for step in (1, 2, course.steps):  # the last is of the third epoch
        shown = show_step(tokens, course, step)
        taken = rows.rows(batch_indices(step - 1, 7, rows.n_rows, 3))
        assert [row["ids"] for row in shown] == taken.tolist()
        for row in shown:
            assert sum(segment["length"] for segment in row["segments"]) == 65
            for segment in row["segments"]:
                document = texts[segment["source"]][segment["document_row"]]
                ids = [*tokenizer.encode(document["text"]).ids, 0]
                begin, end = segment["offset"], segment["offset"] + segment["length"]
                assert row["ids"][segment["position"] : segment["position"] + segment["length"]] == ids[begin:end]
                assert segment["ends"] == (end == len(ids))
                assert document["id"] == segment["document"]
                if not segment["offset"] and segment["ends"]:
                    assert segment["text"] == document["text"]


@pytest.mark.parametrize("step", [0, 10**6])
def test_a_step_that_there_is_not_is_refused(made, step):
    with pytest.raises(PicoError, match=f"there is no step {step}: the run has the steps 1 to"):
        show_step(made[1], course_of(made[1]), step)


def test_a_string_is_found_at_every_step_that_saw_it_and_nowhere_else(made):
    folder, tokens = made
    rows, tokenizer, course = TokenRows(tokens / "train"), load_tokenizer(tokens / "tokenizer"), course_of(tokens)
    texts = [tokenizer.decode(row.tolist()) for row in rows.rows(np.arange(rows.n_rows))]
    word = pq.read_table(folder / "novels.parquet")["text"][3].as_py().split()[-1]
    for wanted in (MARKED, word, "xylo"):
        found = find_text(tokens, course, wanted, limit=10**6)
        assert {hit["row"] for hit in found} == {k for k, text in enumerate(texts) if wanted in text}
        seen = {}
        for step in range(1, course.steps + 1):
            for row in course.rows(step, rows.n_rows).tolist():
                seen.setdefault(row, []).append(step)
        for hit in found:
            assert hit["steps"] == seen.get(hit["row"], [])
            ids = rows.rows(np.array([hit["row"]]))[0][hit["place"] :]
            assert wanted[:2] in tokenizer.decode(ids.tolist())[:12]
    hit = find_text(tokens, course, MARKED, limit=1)[0]
    assert hit["document"] == pq.read_table(folder / "novels.parquet")["id"][17].as_py()
    assert not find_text(tokens, course, "no such text anywhere", limit=5)
    assert len({hit["row"] for hit in find_text(tokens, course, "a", limit=3)}) == 3
    with pytest.raises(PicoError, match="nothing to look for"):
        find_text(tokens, course, "", limit=5)


def test_no_string_is_found_across_the_end_of_a_document_or_row(made):
    _, tokens = made
    rows, tokenizer, course = TokenRows(tokens / "train"), load_tokenizer(tokens / "tokenizer"), course_of(tokens)
    ids = rows.rows(np.arange(2))
    across = tokenizer.decode(ids[0][-6:].tolist()) + tokenizer.decode(ids[1][:6].tolist())
    assert 0 not in find_rows(tokens, course, across)
    place = int(np.flatnonzero(ids.reshape(-1)[3:-3] == 0)[0]) + 3
    flat = ids.reshape(-1)
    joined = tokenizer.decode(flat[place - 3 : place].tolist()) + tokenizer.decode(flat[place + 1 : place + 4].tolist())
    assert place // 65 not in find_rows(tokens, course, joined)


def find_rows(tokens, course, wanted):
    return {hit["row"] for hit in find_text(tokens, course, wanted, limit=10**6)}


def test_the_course_of_a_run_is_that_of_its_checkpoint_and_other_tokens_are_refused(made, tmp_path):
    _, tokens = made
    identity = {"settings": {"training": {"steps": 9, "batch_size": 4}, "seed": 5},
                "data": {"provenance.json": sha256_file(tokens / "provenance.json")}}  # fmt: skip
    path = tmp_path / "run/checkpoints/step_00000009/trainer.json"
    path.parent.mkdir(parents=True)
    write_json(path, {"identity": identity})
    assert course_of_run(tmp_path / "run", tokens) == Course(9, 4, 5)
    identity["data"]["provenance.json"] = "0"
    write_json(path, {"identity": identity})
    with pytest.raises(PicoError, match="was trained on other tokens"):
        course_of_run(tmp_path / "run", tokens)
    with pytest.raises(PicoError, match="holds no checkpoint"):
        course_of_run(tmp_path, tokens)
