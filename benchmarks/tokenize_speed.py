"""Measures how fast documents become token shards beside a peer: `python benchmarks/tokenize_speed.py [--json]`.

The same documents (benchmarks/made_corpus.py: text of pinned wheels, first as it is, then in edited copies), in the
same Parquet files, with the same tokenizer (OLMo's, from its wheel) and as many processes, or threads, on each side:

- ours_all: `pico.data.preparation.pipeline` with the shipped settings: exact and near-duplicates dropped, text
  normalised and filtered, ids checked to give back the text to the byte, documents and rows shuffled over the whole
  corpus, held-out sets, shards, and beside them where each id came from.
- ours_same: the same without cleaning and near-duplicates, which the peer doesn't do. What can't be switched off is
  still done: exact duplicates, the check, both shuffles, held-out sets, the sidecar.
- datasets: `datasets.map` in batches with the tokenizer's `encode_batch_fast`, EOS after each document; a second `map`
  that joins ids and cuts rows of seq_len + 1, in batches as usual, int32; `to_parquet`. No shuffle, no deduplication.
- encode_batch: `tokenizers.Tokenizer.encode_batch` over the same texts as strings already in memory, in batches; what
  it gives is thrown away. encode_batch_fast is given beside it.

Each side is a process of its own that times itself from the first byte read to the last written, imports not counted;
Ray's start is counted, and so is that of the peer's processes. Sides alternate over the repeats; medians are given.
A side's rate is the tokens that it wrote itself (duplicates that were dropped count nothing) by its time.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from made_corpus import ROOT, domains_of, place
from ruamel.yaml import YAML

from pico.config import Cleaning, Packing, PretrainedTokenizer, Tokenizer, Wheel
from pico.data.preparation.tokenizer import save_tokenizer, train_bpe
from pico.data.sources import wheels
from pico.data.tokens.tokenizer import EOS
from pico.files import write_json

SIDES = ("ours_all", "ours_same", "datasets", "encode_batch", "encode_batch_fast")
TARGETS = {"datasets": 1.5, "encode_batch": 0.8}
BATCH = 1000
"""Documents that the peers work on at a time: the default of `datasets.map`."""
NOTHING = {"unicode": "none", "max_control_fraction": 1.0, "min_letter_fraction": 0.0, "near_duplicates": "ignore"}
"""Settings of no cleaning."""


def write_documents(folder: Path, megabytes: float, small: bool) -> dict[str, int]:
    """Writes `data/documents/` of the corpus, and the tokenizer's file below it. Returns the counts."""
    domains = domains_of(own=small)
    counts = {"bytes": 0, "documents": 0}
    target = folder / "documents"
    (target / "tokenizer").mkdir(parents=True)
    copies = max(1, round(megabytes * 1e6 / sum(domain.bytes for domain in domains)))
    entries = []
    for domain in domains:
        texts: list[str] = []
        for number in range(copies):
            tables = domain.copy(number, 1) if number else [domain.original()]
            texts += [text for table in tables for text in table["text"].to_pylist()]
        own = {"documents": len(texts), "bytes": sum(len(text.encode()) for text in texts)}
        counts = {key: counts[key] + own[key] for key in counts}
        entry = {"name": domain.name, "domain": domain.name, "licence": "as its source", "kind": "files", "pin": ""}
        entries.append(entry | own)
        columns = {
            "id": [hashlib.sha256(text.encode()).hexdigest() for text in texts],
            "source": [domain.name] * len(texts),
            "domain": [domain.name] * len(texts),
            "text": texts,
        }
        rows = max(1, round(2**24 / (own["bytes"] / len(texts))))  # as stage fetch does: 16 MB of text a row group
        pq.write_table(pa.table(columns), target / f"{domain.name}.parquet", row_group_size=rows, compression="zstd")
    write_json(target / "sources.json", entries)
    if small:
        made = train_bpe(texts, 600)
        save_tokenizer(made, folder / "trained", kind="bpe", eos_token=EOS)
        data = (folder / "trained" / "tokenizer.json").read_bytes()
    else:
        settings = YAML(typ="safe").load(ROOT / "conf" / "tokenizer" / "olmo.yaml")["pretrained"]
        wheel = Wheel(**settings["wheel"])
        with wheels.Archive(wheels.download(wheel), wheels.pin(wheel)) as archive:
            data = archive.read(settings["member"])
    (target / "tokenizer" / "tokenizer.json").write_bytes(data)
    return counts | {"copies": copies}


def load(folder: Path) -> Any:
    """Loads the tokenizer, as all sides use it."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "documents" / "tokenizer" / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # as `pico.data` has it: a text that spells EOS holds none
    return tokenizer


def files(folder: Path) -> list[str]:
    """Returns the documents' files."""
    return sorted(str(path) for path in (folder / "documents").glob("*.parquet"))


def ours(folder: Path, out: Path, seq_len: int, processes: int, **cleaning: Any) -> int:
    """Runs `prepare`, on Ray where there is more than one process. Returns the tokens written."""
    from pico.data.preparation.pipeline import prepare

    config = YAML(typ="safe").load(ROOT / "conf" / "config.yaml")
    none = Wheel(package="none", version="0", sha256="0" * 64)
    size = load(folder).get_vocab_size()
    file = PretrainedTokenizer(wheel=none, member="tokenizer.json", eos_token=EOS)
    tokenizer = Tokenizer(kind="pretrained", vocab_size=size, pretrained=file)
    packing = Packing(**config["packing"] | {"seq_len": seq_len, "heldout_rows": 100})
    if processes > 1:
        import ray

        ray.init(num_cpus=processes, include_dashboard=False, log_to_driver=False, object_store_memory=2**28)
    found = prepare(
        folder / "documents", out / "tokens", tokenizer=tokenizer, cleaning=Cleaning(**config["cleaning"] | cleaning),
        packing=packing, vocab_size=size, runs=out / "runs",
    )  # fmt: skip
    return int(found["total"]["tokens"])


def datasets_map(folder: Path, out: Path, seq_len: int, processes: int) -> int:
    """Does as is usual with `datasets`. Returns the tokens written."""
    import datasets

    tokenizer, row = load(folder), seq_len + 1
    eos = tokenizer.token_to_id(EOS)
    ids = datasets.Features({"input_ids": datasets.Sequence(datasets.Value("int32"))})

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        encodings = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
        return {"input_ids": [[*encoding.ids, eos] for encoding in encodings]}

    def group(batch: dict[str, list]) -> dict[str, list]:
        joined = [index for own in batch["input_ids"] for index in own]
        return {"input_ids": [joined[start : start + row] for start in range(0, len(joined) - row + 1, row)]}

    datasets.disable_progress_bars()
    many = processes if processes > 1 else None
    cache = str(out / "cache")
    data = datasets.load_dataset("parquet", data_files=files(folder), split="train", columns=["text"], cache_dir=cache)
    data = data.map(tokenize, batched=True, batch_size=BATCH, num_proc=many, remove_columns=["text"], features=ids)
    data = data.map(group, batched=True, batch_size=BATCH, num_proc=many, features=ids)
    data.to_parquet(str(out / "train.parquet"))
    return len(data) * row


def bare(folder: Path, fast: bool) -> tuple[int, float]:
    """Runs `encode_batch` alone. Returns the tokens, and the seconds without the reading."""
    tokenizer = load(folder)
    texts = pq.read_table(files(folder), columns=["text"])["text"].to_pylist()
    encode: Callable[..., list] = tokenizer.encode_batch_fast if fast else tokenizer.encode_batch
    tokens, seconds = 0, 0.0
    for first in range(0, len(texts), BATCH):
        batch = texts[first : first + BATCH]
        start = time.monotonic()
        encodings = encode(batch, add_special_tokens=False)
        seconds += time.monotonic() - start
        tokens += sum(map(len, encodings)) + len(encodings)
    return tokens, seconds


def run_side(options: argparse.Namespace) -> dict[str, Any]:
    """Runs one side, in this process, which was made for it."""
    pa.set_cpu_count(options.processes)
    if options.side.startswith("encode_batch"):
        tokens, seconds = bare(options.folder, options.side.endswith("fast"))
        return {"tokens": tokens, "seconds": seconds}
    if options.side == "datasets":
        import datasets  # noqa: F401 (not counted)
    elif options.processes > 1:
        import ray  # noqa: F401
    import pico.data.preparation.pipeline  # noqa: F401

    with tempfile.TemporaryDirectory(dir=options.folder) as out:
        start = time.monotonic()
        if options.side == "datasets":
            tokens = datasets_map(options.folder, Path(out), options.seq_len, options.processes)
        else:
            cleaning = NOTHING if options.side == "ours_same" else {}
            tokens = ours(options.folder, Path(out), options.seq_len, options.processes, **cleaning)
        return {"tokens": tokens, "seconds": time.monotonic() - start}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs all sides, in turn."""
    with place(None) as folder:
        corpus = write_documents(folder, options.megabytes, options.small)
        # Threads where a side has them; where it has processes, each works alone.
        threads = {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(options.processes)}
        alone = {"TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1",
                 "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
                 "RAY_worker_niceness": "0"}  # fmt: skip
        if options.processes == 1:
            alone |= threads
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(options.repeats):
            for side in SIDES:
                command = [sys.executable, __file__, "--side", side, "--folder", str(folder),
                           "--seq-len", str(options.seq_len), "--processes", str(options.processes)]  # fmt: skip
                environment = os.environ | (threads if side.startswith("encode") else alone)
                environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "huggingface")}
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"side {side} ended with status {done.returncode}:\n{done.stderr[-3000:]}")
                runs[side].append(json.loads(done.stdout.splitlines()[-1]))
                print(side, done.stdout.splitlines()[-1], file=sys.stderr, flush=True)
    rates = {side: statistics.median(run["tokens"] / run["seconds"] for run in own) for side, own in runs.items()}
    return {
        "corpus": corpus,
        "processes": options.processes,
        "seq_len": options.seq_len,
        "tokens": {side: own[0]["tokens"] for side, own in runs.items()},
        "seconds": {side: [round(run["seconds"], 2) for run in own] for side, own in runs.items()},
        "tokens_per_second": {side: round(rate) for side, rate in rates.items()},
        "megabytes_per_second": {
            side: round(corpus["bytes"] / 1e6 / statistics.median(run["seconds"] for run in own), 2)
            for side, own in runs.items()
        },
        "ratios": {
            f"{side} / {peer}": round(rates[side] / rates[peer], 3)
            for peer in ("datasets", "encode_batch", "encode_batch_fast")
            for side in ("ours_all", "ours_same")
        },
        "targets": {f"ours_all / {peer}": target for peer, target in TARGETS.items()},
    }


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--megabytes", type=float, default=250.0, help="of text, about")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="or threads, of each side")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--small", action="store_true", help="text of this repository, nothing downloaded: for tests")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_side(options)))
        return
    found = measure(options)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for side, rate in found["tokens_per_second"].items():
        print(f"{side}: {rate:,} tokens/s, {found['megabytes_per_second'][side]} MB/s")
    for name, ratio in found["ratios"].items():
        print(f"{name}: {ratio}" + (f" (target {found['targets'][name]})" if name in found["targets"] else ""))


if __name__ == "__main__":
    main()
