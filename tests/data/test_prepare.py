"""From documents to tokens: everything accounted for, nothing held out in training, the same bytes every time."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_documents import BPE, made_up, packing, small_corpus, write_documents

from pico.data.heldout import held_out
from pico.data.loader import TokenRows, heldout_rows
from pico.data.prepare import prepare
from pico.data.survey import Documents, sample_texts, survey
from pico.data.tokenizer import EOS, load_tokenizer, token_bytes, tokenizer_meta
from pico.errors import PicoError
from pico.sections import PretrainedTokenizer, Tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpus") / "documents")


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    """data/tokens/ of the small corpus, and its provenance."""
    target = tmp_path_factory.mktemp("made") / "tokens"
    return target, prepare(corpus, target, tokenizer=BPE, packing=packing(), vocab_size=300)


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def texts_of(documents, names):
    return [text for name in names for text in pq.read_table(documents / f"{name}.parquet")["text"].to_pylist()]


def all_training_rows(tokens):
    rows = TokenRows(tokens / "train")
    return rows.rows(np.arange(rows.n_rows))


def whole_documents(rows, tokenizer):
    """The texts of all documents that lie whole within one of the rows."""
    found = set()
    for row in rows:
        ends = np.flatnonzero(row == 0)
        found |= {tokenizer.decode(row[a + 1 : b].tolist()) for a, b in pairwise(ends)}
    return found


def test_what_is_published_is_what_the_contract_says(made):
    tokens, provenance = made
    names = set(contents(tokens))
    shards = -(-provenance["total"]["train_rows"] // 50)
    assert names == {
        "provenance.json", "tokenizer/meta.json", "tokenizer/tokenizer.json", "heldout/prose.parquet",
        "heldout/verse.parquet", *(f"train/train-{k:05d}-of-{shards:05d}.parquet" for k in range(shards)),
    }  # fmt: skip
    assert tokenizer_meta(tokens / "tokenizer") == {"kind": "bpe", "vocab_size": 300, "eos_token": EOS, "eos_id": 0}
    assert json.loads((tokens / "provenance.json").read_text()) == provenance


def test_every_document_byte_and_token_is_accounted_for(corpus, made):
    tokens, provenance = made
    total = provenance["total"]
    texts = texts_of(corpus, ["novels", "essays", "odes"])
    assert total["documents_read"] == len(texts) == 272
    assert total["duplicates_dropped"] == 2
    assert provenance["domains"]["prose"]["duplicates_dropped"] == 2
    assert total["documents"] == len(set(texts)) == total["train_documents"] + total["heldout_documents"]
    assert total["bytes"] == sum(len(text.encode()) for text in set(texts))
    tokenizer = load_tokenizer(tokens / "tokenizer")
    assert total["tokens"] == sum(len(tokenizer.encode(text).ids) + 1 for text in set(texts))
    assert total["train_tokens"] == total["train_rows"] * 17 + total["tail_tokens_dropped"]
    assert total["train_tokens"] + total["heldout_tokens"] == total["tokens"]
    assert total["tail_tokens_dropped"] < 17
    rows = all_training_rows(tokens)
    assert rows.shape == (total["train_rows"], 17)
    assert (rows == 0).sum() == total["train_documents"] - total["tail_documents_dropped"]
    for domain, account in provenance["domains"].items():
        assert account["heldout_rows"] == len(heldout_rows(tokens)[domain][0])
        kept = account["heldout_rows"] + account["heldout_rows_left_out"]
        assert account["heldout_tokens"] == kept * 17 + account["heldout_tail_tokens"]
    for key in ("documents", "tokens", "train_tokens", "heldout_rows"):
        assert total[key] == sum(account[key] for account in provenance["domains"].values())


def test_no_held_out_document_is_in_training(corpus, tmp_path):
    tokens = tmp_path / "tokens"
    prepare(corpus, tokens, tokenizer=BPE, packing=packing(seq_len=400, heldout_fraction=0.2), vocab_size=300)
    tokenizer = load_tokenizer(tokens / "tokenizer")
    kept_out = set()
    for domain, names in (("prose", ["novels", "essays"]), ("verse", ["odes"])):
        texts = sorted(set(texts_of(corpus, names)))
        chosen = held_out([hashlib.sha256(text.encode()).hexdigest() for text in texts], 0.2)
        own = {text for text, out in zip(texts, chosen, strict=True) if out}
        seen = whole_documents(heldout_rows(tokens)[domain][0], tokenizer)
        assert seen
        assert seen <= own
        kept_out |= own
    trained = whole_documents(all_training_rows(tokens), tokenizer)
    assert trained
    assert not trained & kept_out


def test_held_out_bytes_are_those_of_the_targets(made):
    tokens, _ = made
    sizes = token_bytes(load_tokenizer(tokens / "tokenizer"))
    for rows, n_bytes in heldout_rows(tokens).values():
        assert n_bytes.tolist() == sizes[rows[:, 1:]].sum(axis=1).tolist()


def test_the_unigram_baseline_lies_between_chance_and_nothing(made):
    _, provenance = made
    assert set(provenance["unigram"]) == {"all", "prose", "verse"}
    for domain, bits in provenance["unigram"].items():
        per_token = provenance["total" if domain == "all" else "domains"]
        per_token = per_token if domain == "all" else per_token[domain]
        assert 0 < bits < 1.2 * np.log2(300) / per_token["bytes_per_token"]


def test_the_same_bytes_again_and_from_a_spread_over_other_chunks(corpus, made, tmp_path):
    again = tmp_path / "again"
    prepare(corpus, again, tokenizer=BPE, packing=packing(), vocab_size=300)
    assert contents(again) == contents(made[0])
    for path in corpus.glob("*.parquet"):
        (tmp_path / "regrouped").mkdir(exist_ok=True)
        pq.write_table(pq.read_table(path), tmp_path / "regrouped" / path.name, row_group_size=7)
    (tmp_path / "regrouped/sources.json").write_bytes((corpus / "sources.json").read_bytes())
    prepare(tmp_path / "regrouped", again, tokenizer=BPE, packing=packing(), vocab_size=300)
    assert contents(again) == contents(made[0])


def test_another_seed_changes_the_order_but_not_the_held_out_rows(corpus, made, tmp_path):
    prepare(corpus, tmp_path / "tokens", tokenizer=BPE, packing=packing(seed=2), vocab_size=300)
    other, first = contents(tmp_path / "tokens"), contents(made[0])
    same = {name for name in first if other[name] == first[name]}
    assert {name for name in first if name.startswith(("heldout", "tokenizer"))} <= same
    assert not [name for name in same if name.startswith("train")]
    assert not np.array_equal(all_training_rows(tmp_path / "tokens"), all_training_rows(made[0]))


def test_the_tokenizer_is_trained_on_training_documents_alone_domain_by_share(corpus):
    surveyed = survey(corpus, 0.3)
    heldout = set()
    for part in surveyed:
        texts = pq.read_table(part.path)["text"].to_pylist()
        heldout |= {text for text, out in zip(texts, part.heldout, strict=True) if out}
    everything = sample_texts(surveyed, 10**9)
    assert heldout
    assert not heldout & set(everything)
    assert len(everything) == sum(int(part.train.sum()) for part in surveyed)
    sample = sample_texts(surveyed, 4000)
    assert sum(len(text.encode()) for text in sample) == pytest.approx(4000, abs=8)
    verse = sum(len(text.encode()) for text in sample if text.startswith("3-"))
    whole = sum(len(text.encode()) for text in everything if text.startswith("3-"))
    assert verse / 4000 == pytest.approx(whole / sum(len(text.encode()) for text in everything), abs=0.02)


def test_a_repeated_document_is_kept_where_it_comes_first(corpus):
    novels, essays, _ = survey(corpus, 0.1)
    assert isinstance(novels, Documents)
    assert novels.kept.tolist() == [True] * 120 + [False]
    assert essays.kept.tolist() == [True] * 60 + [False]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), min_size=2, max_size=25),
    st.integers(1, 20),
    st.floats(0, 0.9),
    st.integers(0, 5),
)
def test_any_documents_any_row_length(tmp_path_factory, texts, seq_len, fraction, seed):
    """Every document comes out of the rows and the account exactly, or the corpus is refused with a reason."""
    root = tmp_path_factory.mktemp("any")
    documents = write_documents(root / "documents", {"s": ("d", texts)}, row_group=3)
    settings_ = packing(seq_len=seq_len, heldout_fraction=fraction, heldout_rows=1000, seed=seed)
    tokenizer = Tokenizer(kind="bpe", vocab_size=257)  # bytes alone: ids 1 to 256
    try:
        provenance = prepare(documents, root / "tokens", tokenizer=tokenizer, packing=settings_, vocab_size=257)
    except PicoError:  # too little text, or all of it held out
        assert len(set(texts)) < 2 or fraction > 0 or sum(len(text.encode()) + 1 for text in texts) < 3 * seq_len
        assert not (root / "tokens").exists()
        return
    total, distinct = provenance["total"], set(texts)
    assert total["tokens"] == sum(len(text.encode()) + 1 for text in distinct)
    assert total["train_tokens"] == total["train_rows"] * (seq_len + 1) + total["tail_tokens_dropped"]
    loaded = load_tokenizer(root / "tokens/tokenizer")
    heldout, _ = heldout_rows(root / "tokens")["d"]
    seen = whole_documents(all_training_rows(root / "tokens"), loaded)
    assert seen - {""} <= distinct
    assert not (whole_documents(heldout, loaded) - {""}) & seen


def one_domain(tmp_path, texts):
    return write_documents(tmp_path / "documents", {"own": ("mine", texts)})


@pytest.mark.parametrize(
    ("texts", "changes", "message"),
    [
        (["a", "b", "c"], {}, r"too small for one training row: \d+ tokens in 2 training documents.*seq_len \+ 1 = 17"),
        (["only one, twice"] * 2, {}, "domain 'mine' has 1 documents after exact deduplication"),
        ([], {}, "domain 'mine' has 0 documents"),
        (made_up(5, 1), {"heldout_fraction": 1.0}, "all 5 documents of domain 'mine' are held out"),
    ],
)
def test_too_little_text_is_refused_with_numbers_and_leaves_nothing(tmp_path, texts, changes, message):
    documents = one_domain(tmp_path, texts)
    with pytest.raises(PicoError, match=message) as caught:
        prepare(documents, tmp_path / "tokens", tokenizer=BPE, packing=packing(**changes), vocab_size=300)
    assert caught.value.mend
    assert [path.name for path in tmp_path.iterdir()] == ["documents"]


def test_a_domain_is_sampled_down_to_its_share_independently_of_what_is_held_out(tmp_path):
    texts = made_up(600, seed=3)
    corpus = write_documents(tmp_path / "documents", {"one": ("prose", texts), "two": ("verse", made_up(30, seed=4))})
    size = sum(len(text.encode()) for text in texts)
    everything, sampled = survey(corpus, 0.2), survey(corpus, 0.2, size // 2)
    assert 0.45 * size < sampled[0].n_bytes[sampled[0].kept].sum() <= size // 2
    assert sampled[1].kept.all()  # under the limit: untouched
    both = sampled[0].kept
    assert (sampled[0].heldout[both] == everything[0].heldout[both]).all()  # a document stays on its side
    assert 0.1 < sampled[0].heldout[both].mean() < 0.3
    fewer = survey(corpus, 0.2, size // 4)
    assert (both | ~fewer[0].kept).all()  # a smaller sample is part of a larger one


def test_missing_and_torn_documents_are_named(tmp_path):
    with pytest.raises(PicoError, match=r"sources\.json does not exist"):
        survey(tmp_path / "documents", 0.1)
    documents = one_domain(tmp_path, made_up(5, 1))
    (documents / "own.parquet").write_bytes(b"PAR1")
    with pytest.raises(PicoError, match=r"source 'own' cannot be read[\s\S]*own\.parquet"):
        survey(documents, 0.1)
    pq.write_table(pa.table({"id": ["a"]}), documents / "own.parquet")
    with pytest.raises(PicoError, match="source 'own' cannot be read"):
        survey(documents, 0.1)


def test_a_tokenizer_larger_than_the_embedding_is_refused(corpus, tmp_path):
    with pytest.raises(PicoError, match=r"300 entries, the models' embedding only 299"):
        prepare(corpus, tmp_path / "tokens", tokenizer=BPE, packing=packing(), vocab_size=299)


def test_a_pretrained_tokenizer_is_used_from_the_documents_folder(corpus, made, tmp_path):
    documents = small_corpus(tmp_path / "documents")
    (documents / "tokenizer").mkdir()
    (documents / "tokenizer/theirs.json").write_bytes((made[0] / "tokenizer/tokenizer.json").read_bytes())
    wheel = {"package": "p", "version": "1", "sha256": "0" * 64}
    theirs = PretrainedTokenizer.model_validate({"wheel": wheel, "member": "theirs.json", "eos_token": EOS})
    chosen = Tokenizer(kind="pretrained", vocab_size=300, pretrained=theirs)
    prepare(documents, tmp_path / "tokens", tokenizer=chosen, packing=packing(), vocab_size=512)
    found, first = contents(tmp_path / "tokens"), contents(made[0])
    different = {name for name in first if found[name] != first[name]}
    assert different == {"tokenizer/meta.json", "provenance.json"}  # kind: pretrained


def test_a_kill_leaves_no_half_written_out_and_the_next_run_clears_up(corpus, made, tmp_path):
    target = tmp_path / "data" / "tokens"
    program = (
        "import os, signal, sys; from pathlib import Path; from made_documents import BPE, packing;"
        "from pico.data import prepare as module;"
        "write = module.write_heldout;"
        "module.write_heldout = lambda *a: (write(*a), os.kill(os.getpid(), signal.SIGKILL));"
        "module.prepare(Path(sys.argv[1]), Path(sys.argv[2]), tokenizer=BPE, packing=packing(), vocab_size=300)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", program, str(corpus), str(target)], env=environment, check=False)
    assert run.returncode == -signal.SIGKILL
    assert not target.exists()
    prepare(Path(corpus), target, tokenizer=BPE, packing=packing(), vocab_size=300)
    assert contents(target) == contents(made[0])
    assert [path.name for path in target.parent.iterdir()] == ["tokens"]


@pytest.mark.slow
def test_two_workers_of_ray_give_the_same_bytes_as_this_process(made, tmp_path):
    program = (
        "from pathlib import Path; import ray; from made_documents import BPE, packing, small_corpus;"
        "from pico.data.prepare import prepare;"
        "documents = small_corpus(Path('documents'));"
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False);"
        "prepare(documents.resolve(), Path('tokens').resolve(), tokenizer=BPE, packing=packing(), vocab_size=300)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert contents(tmp_path / "tokens") == contents(made[0])
