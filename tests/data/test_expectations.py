"""The gates: good data pass; each planted fault is caught by its rule, with its rows and its setting named."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_documents import BPE, made_up, packing, plain, small_corpus, write_documents

from pico.data.data_docs import write_data_docs
from pico.data.expectations import check, refuse
from pico.data.heldout import is_low, write_heldout
from pico.data.loader import TokenRows, heldout_rows
from pico.data.prepare import prepare
from pico.errors import PicoError
from pico.files import read_json, write_json
from pico.sections import Gates

LIMITS = {
    "min_documents": 100, "min_domain_documents": 2, "min_document_bytes": 1, "max_document_bytes": 5000,
    "min_mean_document_bytes": 20, "max_control_fraction": 0.02, "near_duplicate_similarity": 0.8,
    "max_near_duplicate_fraction": 0.0, "max_heldout_near_duplicate_fraction": 0.0, "compared_documents": 10_000,
    "ngram_words": 13, "max_heldout_overlap": 0.5, "max_heldout_domain_overlap": 0.05, "max_contaminated_fraction": 0.0,
    "min_domain_fraction": 0.005, "max_domain_fraction": 0.9, "min_train_rows": 64, "min_heldout_rows": 1,
}  # fmt: skip
QUESTION = (
    "Which of these organisms, found in the deep sea near hydrothermal vents, makes its own food without any sunlight?"
)
SHORT = "Why does the moon look bright at night?"  # eight words


def write_benchmarks(folder):
    """Two benchmarks in schemas of their own."""
    questions = [QUESTION, SHORT, *(f"{text} and so what is it" for text in made_up(20, 77))]
    choices = [{"text": ["a worm", "a bacterium"], "label": ["A", "B"]}] * len(questions)
    (folder / "sciences").mkdir(parents=True)
    pq.write_table(pa.table({"question": questions, "choices": choices}), folder / "sciences/validation.parquet")
    (folder / "passages").mkdir()
    pq.write_table(pa.table({"text": made_up(20, 78)}), folder / "passages/test.parquet")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound")
    write_benchmarks(root / "benchmarks")
    prepare(small_corpus(root / "documents"), root / "tokens", tokenizer=BPE, packing=packing(), vocab_size=300,
            cleaning=plain(), runs=root / "runs")  # fmt: skip
    return root


@pytest.fixture
def data(sound, tmp_path):
    """A copy of the sound data, to be spoilt."""
    return shutil.copytree(sound, tmp_path / "data")


def checked(root, seq_len=16, vocab_size=300, **limits):
    return check(root / "documents", root / "tokens", root / "benchmarks", gates=Gates(**(LIMITS | limits)),
                 packing=packing(seq_len=seq_len), vocab_size=vocab_size)  # fmt: skip


def gates_of(root, **options):
    return checked(root, **options).results


def failed(results):
    return {(result["gate"], result["param"]) for result in results if not result["passed"]}


def only_failure(results):
    found = [result for result in results if not result["passed"]]
    assert len(found) == 1, [(result["gate"], result["rule"]) for result in found]
    return found[0]


def test_sound_data_pass_every_gate_and_the_results_are_json_without_times(sound):
    one, two = checked(sound), checked(sound)
    assert failed(one.results) == set()
    refuse(one.results)
    for name in ("results", "profile"):
        first, second = getattr(one, name), getattr(two, name)
        assert first == second == json.loads(json.dumps(first, allow_nan=False))
    assert {result["gate"] for result in one.results} >= {
        "documents.schema", "documents.nulls", "documents.identity", "documents.length", "documents.characters",
        "documents.duplicates", "documents.near_duplicates", "documents.heldout_near_duplicates",
        "documents.heldout_overlap", "documents.contamination", "tokens.schema", "tokens.row_length", "tokens.range",
        "tokens.eos", "tokens.overlap", "tokens.domain_mix",
    }  # fmt: skip
    assert sum(len(entries) for entries in one.suites.values()) == len(one.results)
    assert set(one.suites) == {"documents", "tokens"}


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
    assert failed(gates_of(sound, min_domain_documents=91)) == {("documents.domains", "gates.min_domain_documents")}


def test_a_failure_names_rule_rows_and_setting(sound, tmp_path):
    with pytest.raises(PicoError) as caught:
        refuse(gates_of(sound, max_document_bytes=150), tmp_path / "gates.json")
    text = str(caught.value)
    assert "documents.length: bytes of the longest document" in text
    assert "limit 150 (params.yaml: gates.max_document_bytes)" in text
    assert "source=novels, row=" in text
    assert "gates.json" in text


def spoil_documents(root, texts, **more):
    """Replaces the verse, and adds domains; the tokens are made from them as they are."""
    sources = {"novels": ("prose", made_up(120, 1)), "odes": ("verse", texts)}
    write_documents(root / "documents", sources | {name: (name, own) for name, own in more.items()})
    shutil.rmtree(root / "tokens")
    prepare(root / "documents", root / "tokens", tokenizer=BPE, packing=packing(), vocab_size=300,
            cleaning=plain(), runs=root / "runs")  # fmt: skip


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


def sha256(text):
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def similar_pair(heldout):
    """Two documents that differ in one word of fifty; the first is held out where `heldout`, the second trained on."""
    random = np.random.default_rng(5)
    words = ["".join(random.choice(list("abcdefg"), 6)) for _ in range(50)]
    versions = [" ".join([*words[:49], f"last{n}"]) for n in range(200)]
    low = [text for text in versions if is_low(sha256(text), 0.1)]
    high = [text for text in versions if not is_low(sha256(text), 0.1)]
    return (low[0] if heldout else high[1]), high[0]


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


def test_results_do_not_depend_on_the_order_in_which_processes_finish(data, monkeypatch):
    spoil_documents(data, [*made_up(90, 3), *similar_pair(heldout=True), QUESTION])
    expected = [checked(data, compared_documents=count) for count in (10_000, 60)]

    def backwards(function, calls):
        yield from reversed(list(enumerate([function(*call) for call in calls])))

    for module in ("audit", "comparisons", "expectations"):
        monkeypatch.setattr(f"pico.data.{module}.spread", backwards)
    found = [checked(data, compared_documents=count) for count in (10_000, 60)]
    assert [(one.results, one.profile) for one in found] == [(one.results, one.profile) for one in expected]


def test_an_empty_domain_is_found(data):
    path = data / "documents/odes.parquet"
    rewrite(path, pq.read_table(path).slice(0, 0))
    result = only_failure(gates_of(data))
    assert (result["gate"], result["param"], result["observed"]) == (
        "documents.domains", "gates.min_domain_documents", 0
    )  # fmt: skip
    assert [example["domain"] for example in result["examples"]] == ["verse"]


def test_a_domain_without_tokens_is_found(data):
    provenance = read_json(data / "tokens/provenance.json")
    del provenance["domains"]["verse"]
    write_json(data / "tokens/provenance.json", provenance)
    (data / "tokens/heldout/verse.parquet").unlink()
    results = gates_of(data, max_domain_fraction=1.0)
    assert failed(results) == {
        ("tokens.domain_mix", "gates.min_domain_fraction"), ("tokens.heldout_rows", "gates.min_heldout_rows")
    }  # fmt: skip
    assert {e["domain"] for r in results if not r["passed"] for e in r["examples"]} == {"verse"}


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
    assert only_failure(gates_of(data))["gate"] == "documents.counted"


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


def test_missing_benchmarks_are_an_error(data):
    shutil.rmtree(data / "benchmarks")
    with pytest.raises(PicoError, match="benchmarks holds no benchmarks"):
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


def test_many_failures_are_counted_over_all_rows_and_five_are_shown(sound):
    result = only_failure(gates_of(sound, max_document_bytes=100))
    paths = [*(sound / "tokens").glob("*-provenance/*.parquet")]
    used = {identity for path in paths for identity in pq.read_table(path)["document"].to_pylist()}
    texts = {*made_up(120, 1), *made_up(60, 2), *made_up(90, 3)}
    sizes = [len(text.encode()) for text in texts if sha256(text) in used]
    assert result["failures"] == sum(size > 100 for size in sizes)
    assert len(result["examples"]) == 5
    assert result["observed"] == max(sizes)


def test_data_docs_load_nothing_hold_no_clock_and_show_each_gate(sound, tmp_path):
    for name in ("one", "two"):
        write_data_docs(checked(sound), tmp_path / name)
    pages = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert pages == ["documents.html", "index.html", "tokens.html"]
    for page in pages:
        text = (tmp_path / "one" / page).read_text()
        assert text == (tmp_path / "two" / page).read_text()
        assert "http" not in text
        assert not any(tag in text for tag in ("<script", "<img", '<link rel="stylesheet', "@import", "url("))
        assert "1970" not in text
    text = (tmp_path / "one" / "documents.html").read_text()
    assert "values must be greater than or equal to" in text  # Great Expectations' own words
    assert text.count("✓ passed") == sum(r["gate"].startswith("documents.") for r in gates_of(sound))


def test_data_docs_name_what_failed_and_no_data_become_markup(data, tmp_path):
    path = data / "documents/odes.parquet"
    table = pq.read_table(path)
    rewrite(path, table.append_column("<script>alert(1)</script>", table["id"]))
    write_data_docs(checked(data), tmp_path / "docs")
    text = (tmp_path / "docs/documents.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "✗ failed" in text
    assert "odes.parquet" in text
