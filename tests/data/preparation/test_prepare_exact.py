"""The same bytes again, from other blocks, after a kill and by workers; any documents, any row length."""

import hashlib
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_documents import packing, plain, write_documents
from prepared_corpus import all_training_rows, contents, prepare, segments

from pico.config import Tokenizer
from pico.data.tokens.loader import heldout_rows
from pico.data.tokens.tokenizer import load_tokenizer
from pico.errors import PicoError


def test_the_same_bytes_again_and_from_other_blocks(corpus, made, tmp_path):
    again = tmp_path / "again"
    prepare(corpus, again)
    assert contents(again) == contents(made[0])
    for path in corpus.glob("*.parquet"):
        (tmp_path / "regrouped").mkdir(exist_ok=True)
        pq.write_table(pq.read_table(path), tmp_path / "regrouped" / path.name, row_group_size=7)
    (tmp_path / "regrouped/sources.json").write_bytes((corpus / "sources.json").read_bytes())
    prepare(tmp_path / "regrouped", again)
    tables = {name for name in contents(again) if name.startswith("documents/")}  # their row groups are the documents'
    assert {name: value for name, value in contents(again).items() if name not in tables} == {
        name: value for name, value in contents(made[0]).items() if name not in tables
    }
    assert all(pq.read_table(again / name).equals(pq.read_table(made[0] / name)) for name in tables)


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


def killed(function, corpus, target):
    """Runs `prepare` in a process that kills itself when `module.function` has been called a second time."""
    module, name = function.rsplit(".", 1)
    program = (
        "import os, signal, sys, importlib; from pathlib import Path;"
        "from made_documents import BPE, cleaning, packing; from pico.data.preparation.pipeline import prepare;"
        f"module = importlib.import_module('pico.data.preparation.{module}'); real = module.{name}; calls = []\n"
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


@pytest.mark.parametrize(
    "function",
    ["filtering.clean_block", "tokenization.tokenize_block", "shards.write_shard", "shards.write_source"],
)
def test_after_a_kill_the_next_run_goes_on_and_gives_the_same_bytes(corpus, made, tmp_path, function, monkeypatch):
    target = tmp_path / "data" / "tokens"
    assert killed(function, corpus, target).returncode == -signal.SIGKILL
    assert not target.exists()
    module, name = function.rsplit(".", 1)
    owner = sys.modules[f"pico.data.preparation.{module}"]
    calls, real = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *arguments: (calls.append(arguments), real(*arguments))[1])
    prepare(corpus, target)
    assert contents(target) == contents(made[0])
    shards, sources = (len(list((target / part).glob("*"))) for part in ("train", "documents"))
    assert (
        len(calls) == {"write_shard": shards, "write_source": sources}.get(name, 9) - 2
    )  # what was finished before the kill was not done again
    assert not list((target.parent / "runs/prepare").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_of_ray_give_the_same_bytes_as_this_process(made, tmp_path, workers):
    program = (
        "from pathlib import Path; import ray; from made_documents import BPE, cleaning, packing, small_corpus;"
        "from pico.data.preparation.pipeline import prepare;"
        "documents = small_corpus(Path('documents'));"
        f"ray.init(num_cpus={workers}, include_dashboard=False, log_to_driver=False);"
        "prepare(documents, Path('tokens'), tokenizer=BPE, cleaning=cleaning(), packing=packing(), vocab_size=300)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert contents(tmp_path / "tokens") == contents(made[0])
