"""Sound data, limits that they pass, and what the gates say of data."""

import shutil

import numpy as np
import pyarrow.parquet as pq
from made_documents import BPE, made_up, packing, plain, write_documents

from pico.config import Gates
from pico.data.gates.check import check
from pico.data.preparation.pipeline import prepare
from pico.data.tokens.hashing import is_low

LIMITS = {
    "min_documents": 100, "min_domain_documents": 2, "min_document_bytes": 1, "max_document_bytes": 5000,
    "min_mean_document_bytes": 20, "max_control_fraction": 0.02, "near_duplicate_similarity": 0.8,
    "max_near_duplicate_fraction": 0.0, "max_heldout_near_duplicate_fraction": 0.0, "compared_documents": 10_000,
    "ngram_words": 13, "max_heldout_overlap": 0.5, "max_heldout_domain_overlap": 0.05, "max_contaminated_fraction": 0.0,
    "min_domain_fraction": 0.005, "max_domain_fraction": 0.9, "min_train_rows": 64, "min_heldout_rows": 1,
    "suites": [],
}  # fmt: skip

QUESTION = (
    "Which of these organisms, found in the deep sea near hydrothermal vents, makes its own food without any sunlight?"
)

SHORT = "Why does the moon look bright at night?"  # eight words


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


def spoil_documents(root, texts, **more):
    """Replaces the verse, and adds domains; the tokens are made from them as they are."""
    sources = {"novels": ("prose", made_up(120, 1)), "odes": ("verse", texts)}
    write_documents(root / "documents", sources | {name: (name, own) for name, own in more.items()})
    shutil.rmtree(root / "tokens")
    prepare(root / "documents", root / "tokens", tokenizer=BPE, packing=packing(), vocab_size=300,
            cleaning=plain(), runs=root / "runs")  # fmt: skip


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


def rewrite(path, table):
    pq.write_table(table, path, row_group_size=40)
