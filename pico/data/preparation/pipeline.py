"""From documents to tokens: cleaning, deduplication, tokenizer, held-out sets, packed shards, and the account of all.

`prepare` runs eight steps in a working folder, `runs/prepare/<fingerprint>/`. Each is a function of files and settings,
spread over blocks of documents or over shards; what is finished there is not done again after a kill. Memory is that of
a block and a shard, whatever the size of the corpus.
"""

import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pico.config import Cleaning, Packing, Tokenizer
from pico.data.preparation.filtering import clean_blocks, hold_out
from pico.data.preparation.provenance import account, provenance_of
from pico.data.preparation.sampling import survey
from pico.data.preparation.shards import write_documents, write_heldout_rows, write_shards
from pico.data.preparation.shuffling import mixture, plan
from pico.data.preparation.token_rows import are_rows, keep_rows, lay_rows, survey_rows
from pico.data.preparation.tokenization import make_tokenizer, tokenize
from pico.data.preparation.work import Progress, Work, find_blocks, locked
from pico.data.tokens.tokenizer import load_tokenizer, token_bytes, tokenizer_meta
from pico.files import publish, read_json, sha256_file, working_folder, write_json

LIBRARIES = ("duckdb", "numpy", "pyarrow", "rensa", "scipy", "tokenizers")
"""Whose versions name the working folder: half of the work of one is not gone on with by another."""
SHARES = {"survey": 0.05, "clean": 0.3, "tokenize": 0.5, "plan": 0.05, "write": 0.1}
"""How much of the time each step takes, about."""


def prepare(
    documents: Path,
    target: Path,
    *,
    tokenizer: Tokenizer,
    cleaning: Cleaning,
    packing: Packing,
    vocab_size: int,
    runs: Path = Path("runs"),
    step: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
    progress: Progress = lambda fraction: None,
) -> dict[str, Any]:
    """Makes `target` (`data/tokens/`) from `documents` (`data/documents/`), whole or not at all; gives the provenance.

    `vocab_size`: entries of the models' embedding, which must hold every id. `runs`: where the working folder is.
    `step` wraps each of the steps (the flow makes them Prefect tasks). `progress` is told how much is done. Raises
    PicoError where a source is missing, a domain has too little text, or the corpus fills no row.
    """
    documents = documents.resolve()  # Ray's workers have folders of their own
    settings = {"tokenizer": tokenizer, "cleaning": cleaning, "packing": packing}
    identity = {"documents": _contents(documents), "code": _code(), "vocab_size": vocab_size}
    identity |= {name: section.model_dump(mode="json") for name, section in settings.items()}
    work = Work(working_folder("prepare", identity, runs.resolve()))
    told = _Told(progress)
    with locked(work.folder):
        provenance = _prepare(work, documents, tokenizer, cleaning, packing, vocab_size, step, told)
        publish(work.folder / "out", target)
        shutil.rmtree(work.folder)
    return provenance


def _prepare(
    work: Work,
    documents: Path,
    tokenizer: Tokenizer,
    cleaning: Cleaning,
    packing: Packing,
    vocab_size: int,
    step: Callable[[Callable[..., Any]], Callable[..., Any]],
    told: "_Told",
) -> dict[str, Any]:
    out = work.folder / "out"
    out.mkdir(exist_ok=True)
    blocks = find_blocks(documents)
    folder, row_len = out / "tokenizer", packing.seq_len + 1

    def tokenizer_made(uses: Path | None = None) -> None:
        if not (folder / "meta.json").exists():
            step(make_tokenizer)(
                folder, documents, work, blocks, uses, tokenizer, packing.tokenizer_sample_bytes, vocab_size
            )

    rows_alone = are_rows(documents, tokenizer, packing)
    if rows_alone:
        tokenizer_made()
        entries, limit = tokenizer_meta(folder)["vocab_size"], packing.max_domain_bytes
        chosen = step(survey_rows)(work, blocks, limit, row_len, folder, told.of("survey"))
        decided = step(keep_rows)(work, blocks, chosen, told.of("clean"))
        uses = step(hold_out)(work, blocks, decided, packing.heldout_fraction)
        step(lay_rows)(work, blocks, uses, row_len, entries, told.of("tokenize"))
    else:
        chosen = step(survey)(work, blocks, packing.max_domain_bytes, told.of("survey"))
        decided = step(clean_blocks)(work, blocks, chosen, cleaning, told.of("clean"))
        uses = step(hold_out)(work, blocks, decided, packing.heldout_fraction)
        tokenizer_made(uses)
        step(tokenize)(work, blocks, uses, folder, told.of("tokenize"))
    sizes = token_bytes(load_tokenizer(folder))
    books = account(work, blocks, uses)
    repetitions = mixture({domain: entry["train_tokens"] for domain, entry in books.items()}, packing.mixture,
                    packing.max_repetitions)  # fmt: skip
    segments, counts = step(plan)(work, blocks, packing, repetitions, told.of("plan"))
    unigram = step(write_shards)(work, out, blocks, segments, packing, counts["rows"], len(sizes), told.of("write"))
    heldout = step(write_heldout_rows)(work, out, blocks, packing, sizes)
    step(write_documents)(work, out, blocks, uses, repetitions)
    meta = tokenizer_meta(folder)
    provenance = provenance_of(out, books, repetitions, counts, heldout, unigram, meta, row_len)
    provenance |= {"unit": "row" if rows_alone else "document", "shuffled": packing.shuffle}
    write_json(out / "provenance.json", provenance)
    return provenance


class _Told:
    """Turns the progress of the steps into that of all."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def of(self, name: str) -> Progress:
        """What the step `name` is to tell."""
        names = list(SHARES)
        before = sum(SHARES[earlier] for earlier in names[: names.index(name)])
        return lambda fraction: self._progress(before + SHARES[name] * fraction)


def _contents(documents: Path) -> dict[str, str]:
    """sha256 of all files of the documents."""
    read_json(documents / "sources.json")  # names it where it is missing
    files = sorted(path for path in documents.rglob("*") if path.is_file())
    return {path.relative_to(documents).as_posix(): sha256_file(path) for path in files}


def _code() -> dict[str, str]:
    """sha256 of the code that prepares, and the versions of what it calls."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    found = {path.name: sha256_file(path) for path in files}
    return found | {name: version(name) for name in LIBRARIES}
