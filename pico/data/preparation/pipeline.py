"""From documents to tokens: deduplication, cleaning, tokenizer, held-out sets, packed shards, and their provenance.

`prepare` runs its steps in a working folder, `runs/prepare/<fingerprint>/`. Each is a function of files and settings,
spread over blocks of documents or over shards; what is finished there is not done again after a kill. Memory is that of
a block and a shard, whatever the size of the corpus.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pico.config import Cleaning, Packing, Tokenizer
from pico.data.preparation.blocks import Progress, Store, find_blocks
from pico.data.preparation.filtering import clean_blocks, hold_out, sample_documents
from pico.data.preparation.packing import mixture, pack
from pico.data.preparation.provenance import domain_statistics, provenance_of, write_uses
from pico.data.preparation.shards import write_heldout_rows, write_shards
from pico.data.preparation.token_rows import are_token_rows, copy_rows, filter_rows, sample_rows
from pico.data.preparation.tokenization import tokenize
from pico.data.preparation.tokenizer import make_tokenizer
from pico.data.tokens.tokenizer import load_tokenizer, token_bytes, tokenizer_meta
from pico.files import publish, read_json, sha256_file, working_folder, write_json
from pico.identity import identity

Step = Callable[[Callable[..., Any]], Callable[..., Any]]
SHARES = {"sample": 0.05, "clean": 0.3, "tokenize": 0.5, "pack": 0.05, "write": 0.1}
"""The share of the time that each step takes, about."""


def prepare(
    documents: Path,
    target: Path,
    *,
    tokenizer: Tokenizer,
    cleaning: Cleaning,
    packing: Packing,
    vocab_size: int,
    runs: Path = Path("runs"),
    step: Step = lambda function: function,
    progress: Progress = lambda fraction: None,
) -> dict[str, Any]:
    """Makes `target` (`data/tokens/`) from `documents` (`data/documents/`), whole or not at all.

    `vocab_size`: entries of the models' embedding, which must hold every id. `runs`: the folder of working folders.
    `step` wraps each of the steps (the flow makes them Prefect tasks). `progress` receives the fraction done. Returns
    the provenance. Raises PicoError where a source is missing, a domain has too little text, or there is no whole row.
    """
    documents = documents.resolve()  # Ray's workers have folders of their own
    settings = {"tokenizer": tokenizer, "cleaning": cleaning, "packing": packing}
    inputs: dict[str, Any] = {name: section.model_dump(mode="json") for name, section in settings.items()}
    inputs |= {"documents": _contents(documents), "vocab_size": vocab_size}
    store = Store(working_folder("prepare", inputs | identity("pico.data.preparation.pipeline"), runs.resolve()))
    with store.locked():
        provenance = _run(store, documents, tokenizer, cleaning, packing, vocab_size, step, progress)
        publish(store.folder / "out", target)
        shutil.rmtree(store.folder)
    return provenance


def _run(
    store: Store, documents: Path, tokenizer: Tokenizer, cleaning: Cleaning, packing: Packing, vocab_size: int,
    step: Step, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    out = store.folder / "out"
    out.mkdir(exist_ok=True)
    blocks = find_blocks(documents)
    folder, row_len = out / "tokenizer", packing.seq_len + 1
    limit, fraction = packing.max_domain_bytes, packing.heldout_fraction

    def part(name: str) -> Progress:
        """Returns the progress of one step as that of all."""
        before = sum(SHARES[earlier] for earlier in list(SHARES)[: list(SHARES).index(name)])
        return lambda done: progress(before + SHARES[name] * done)

    def tokenizer_made(uses: Path | None = None) -> None:
        if not (folder / "meta.json").exists():
            sample = packing.tokenizer_sample_bytes
            step(make_tokenizer)(folder, documents, store, blocks, uses, tokenizer, sample, vocab_size)

    rows_alone = are_token_rows(documents, tokenizer, packing)
    if rows_alone:
        tokenizer_made()
        entries = tokenizer_meta(folder)["vocab_size"]
        sampled = step(sample_rows)(store, blocks, limit, row_len, folder, part("sample"))
        filtered = step(filter_rows)(store, blocks, sampled, part("clean"))
        uses = step(hold_out)(store, blocks, filtered, fraction)
        step(copy_rows)(store, blocks, uses, row_len, entries, part("tokenize"))
    else:
        sampled = step(sample_documents)(store, blocks, limit, part("sample"))
        filtered = step(clean_blocks)(store, blocks, sampled, cleaning, part("clean"))
        uses = step(hold_out)(store, blocks, filtered, fraction)
        tokenizer_made(uses)
        step(tokenize)(store, blocks, uses, folder, part("tokenize"))
    sizes = token_bytes(load_tokenizer(folder))
    statistics = domain_statistics(store, blocks, uses)
    train_tokens = {domain: entry["train_tokens"] for domain, entry in statistics.items()}
    repetitions = mixture(train_tokens, packing.mixture, packing.max_repetitions)
    packed, counts = step(pack)(store, blocks, packing, repetitions, part("pack"))
    unigram = step(write_shards)(store, out, blocks, packed, packing, counts["rows"], len(sizes), part("write"))
    heldout = step(write_heldout_rows)(store, out, blocks, packing, sizes)
    step(write_uses)(store, out, blocks, uses, repetitions)
    meta = tokenizer_meta(folder)
    provenance = provenance_of(out, statistics, repetitions, counts, heldout, unigram, meta, row_len)
    provenance |= {"unit": "row" if rows_alone else "document", "shuffled": packing.shuffle}
    write_json(out / "provenance.json", provenance)
    return provenance


def _contents(documents: Path) -> dict[str, str]:
    read_json(documents / "sources.json")  # names it where it is missing
    files = sorted(path for path in documents.rglob("*") if path.is_file())
    return {path.relative_to(documents).as_posix(): sha256_file(path) for path in files}
