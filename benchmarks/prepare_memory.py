"""Measures the memory that preparation takes: `python benchmarks/prepare_memory.py [--gigabytes 10] [--json]`.

Text of that size (see benchmarks/made_corpus.py) goes through the real stages, `python -m flows.fetch`, `prepare` and
`validate`, in a folder of its own, with the settings of the published suite where size matters: rows of 2049 ids,
shards of 20,480 rows, the shipped cleaning and near-deduplication; a byte-level BPE of 32,000 entries is trained.

Beside each stage this process samples, every INTERVAL seconds, the whole tree of processes below it (Python, Prefect's
server, Ray's daemons and workers) in /proc/PID/smaps_rollup:

- `pss_gb`: resident memory, pages that processes share divided among them, so that the sum counts each page once. It
  includes pages of files that are mapped into memory (libraries; arrays on disk), which the kernel can drop.
- `private_gb`: anonymous memory, which it cannot; pages shared by processes divided as above.

The peak of each sum is given by stage and over all, and what kinds of processes held the first of them. Beside it the
time, processor time (to a second a process), and the most that the folder held on disk. What lies in the page cache
alone belongs to no process and is not counted.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from made_corpus import ROOT, domains_of, place, write_corpus

from pico.cli.settings import compose, write_params
from pico.files import read_json, write_json

INTERVAL = 1.0
LIMIT_GB = 2.0
SETTINGS = (
    "tokenizer.vocab_size=32000", "model.vocab_size=32000", "packing.seq_len=2048", "model.max_seq_len=2048",
    "packing.heldout_rows=100", "packing.max_domain_bytes=null", "packing.rows_per_shard=20480",
)  # fmt: skip
SMALL_SETTINGS = ("tokenizer.vocab_size=1024", "model.vocab_size=1024", "packing.max_domain_bytes=null")


def make_project(folder: Path, settings: tuple[str, ...], domains: list[str]) -> None:
    """Settings whose sources are the made corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "conf", folder / "conf", dirs_exist_ok=True)
    shutil.copy(ROOT / "libraries.yaml", folder)
    sources = [
        {"name": name, "domain": name, "licence": "as its source", "kind": "files", "glob": f"{name}/*.parquet"}
        for name in domains
    ]
    (folder / "conf" / "corpus" / "made.yaml").write_text(json.dumps({"folder": "corpus", "sources": sources}))
    write_params(folder, compose(folder, "laptop", ["corpus=made", *settings])[1])


def handmade_benchmark(folder: Path) -> None:
    """Stands for the benchmarks where nothing is to be downloaded."""
    path = folder / "data" / "benchmarks" / "quiz" / "validation.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    question = "Which of the eleven moons named here did nobody see before the year of the long winter?"
    pq.write_table(pa.table({"question": [question]}), path)
    write_json(folder / "data" / "benchmarks" / "provenance.json", [])


class Watch:
    """Samples a process and all below it, in a thread; those whose parent ended are followed too."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.peak = {"pss": 0, "private": 0, "rss": 0, "disk": 0}
        self.largest: list[tuple[str, float]] = []
        """(what, GB of PSS) at the peak of PSS, by kind of process."""
        self.samples = 0
        self.cpu: dict[tuple[int, float], float] = {}
        """Seconds of processor time by process, when last seen."""
        self._root, self._folder = psutil.Process(pid), folder
        self._known: dict[int, psutil.Process] = {pid: self._root}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the sampling."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._sample()

    def _sample(self) -> None:
        for process in list(self._known.values()):
            try:
                for child in process.children(recursive=True):
                    self._known.setdefault(child.pid, child)
            except psutil.Error:
                self._known.pop(process.pid, None)
        sums = {"pss": 0, "private": 0, "rss": 0}
        kinds: Counter[str] = Counter()
        for process in list(self._known.values()):
            try:
                if not process.is_running():  # a later one of the same number
                    raise psutil.NoSuchProcess(process.pid)
                rollup = _rollup(process.pid)
                kinds[_kind(process)] += rollup["Pss"]
                times = process.cpu_times()
                self.cpu[process.pid, process.create_time()] = times.user + times.system
            except (psutil.Error, OSError, KeyError):
                self._known.pop(process.pid, None)
                continue
            sums["pss"] += rollup["Pss"]
            sums["private"] += rollup["Pss_Anon"]
            sums["rss"] += rollup["Rss"]
        if sums["pss"] > self.peak["pss"]:
            self.largest = [(what, round(size / 1e9, 3)) for what, size in kinds.most_common(5)]
        for name, value in sums.items():
            self.peak[name] = max(self.peak[name], value)
        if self.samples % 20 == 0:
            self.peak["disk"] = max(self.peak["disk"], disk_bytes(self._folder))
        self.samples += 1


def _rollup(pid: int) -> dict[str, int]:
    """Bytes by the kernel's names."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        lines = [line.split() for line in file][1:]
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}


def _kind(process: psutil.Process) -> str:
    line = " ".join(process.cmdline())
    for word, kind in (("ray::", "Ray worker"), ("default_worker", "Ray worker"), ("prefect", "Prefect server"),
                       ("uvicorn", "Prefect server"), ("raylet", "Ray daemons"), ("gcs_server", "Ray daemons"),
                       ("ray/", "Ray daemons"), ("flows.", "stage")):  # fmt: skip
        if word in line:
            return kind
    return process.name()


def disk_bytes(folder: Path) -> int:
    """Returns the bytes of the folder on disk; files that go away meanwhile count nothing."""
    total = 0
    for where, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(where, name)).st_blocks * 512
            except OSError:
                continue
    return total


def run_stage(folder: Path, name: str) -> dict[str, Any]:
    """Runs one stage under the eyes of a Watch; gives time and peaks. Raises RuntimeError where the stage fails."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "RAY_"))}
    start = time.monotonic()
    log = folder / f"{name}.log"
    with open(log, "w") as file:
        process = subprocess.Popen([sys.executable, "-m", f"flows.{name}"], cwd=folder, stdout=file, stderr=file,
                                   env={**kept, "PYTHONPATH": str(ROOT)})  # fmt: skip
        watch = Watch(process.pid, folder)
        status = process.wait()
        watch.stop()
    said = log.read_text()
    gates_failed = name == "validate" and status == 1 and "data gates failed" in said
    if status and not gates_failed:
        raise RuntimeError(f"stage {name} ended with status {status}:\n{said[-3000:]}")
    found: dict[str, Any] = {"stage": name, "seconds": round(time.monotonic() - start, 1)}
    found |= {f"{key}_gb": round(value / 1e9, 3) for key, value in watch.peak.items()}
    found |= {
        "at_peak_gb": dict(watch.largest),
        "samples": watch.samples,
        "cpu_seconds": round(sum(watch.cpu.values())),
    }
    if name == "validate":
        path = folder / ("runs/validate/gates.json" if gates_failed else "reports/gates.json")
        results = read_json(path)
        found["gates"] = len(results)
        found["gates_failed"] = [
            f"{r['gate']}: {r['observed']} (limit {r['limit']})" for r in results if not r["passed"]
        ]
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Makes the corpus and runs the stages."""
    with place(options.folder) as folder:
        domains = domains_of(own=options.small)
        start = time.monotonic()
        corpus = write_corpus(folder / "corpus", int(options.gigabytes * 1e9), domains)
        corpus["seconds"] = round(time.monotonic() - start, 1)
        make_project(folder, SMALL_SETTINGS if options.small else SETTINGS, corpus["domains"])
        del domains
        if options.small:
            handmade_benchmark(folder)
        else:
            run_stage(folder, "fetch_benchmarks")
        stages = []
        for name in ("fetch", "prepare", "validate"):
            stages.append(run_stage(folder, name))
            print(json.dumps(stages[-1]), file=sys.stderr, flush=True)
        total = read_json(folder / "reports" / "data.json")["total"]
    seconds = sum(stage["seconds"] for stage in stages)
    return {
        "corpus": corpus,
        "cores": os.cpu_count(),
        "stages": stages,
        "seconds": round(seconds, 1),
        "peak_pss_gb": max(stage["pss_gb"] for stage in stages),
        "peak_private_gb": max(stage["private_gb"] for stage in stages),
        "peak_disk_gb": max(stage["disk_gb"] for stage in stages),
        "limit_gb": LIMIT_GB,
        "within": max(stage["pss_gb"] for stage in stages) < LIMIT_GB,
        "documents": total["documents_read"],
        "tokens": total["tokens"],
        "duplicates_dropped": total["duplicates_dropped"],
        "near_duplicates_dropped": total["dropped"]["near_duplicate"],
        "tokens_per_second_of_prepare": round(total["tokens"] / stages[1]["seconds"]),
    }


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=10.0, help="of text")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--folder", type=Path, help="where to work, and leave everything")
    parser.add_argument(
        "--small", action="store_true", help="of this repository's own files, without downloads: for tests"
    )
    options = parser.parse_args()
    found = measure(options)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for stage in found["stages"]:
        print(f"{stage['stage']}: {stage['seconds']} s, peak {stage['pss_gb']} GB resident, of which "
              f"{stage['private_gb']} GB anonymous; {stage['disk_gb']} GB on disk")  # fmt: skip
    verdict = "within" if found["within"] else "BEYOND"
    print(f"{found['corpus']['bytes'] / 1e9:.1f} GB of text, {found['tokens']:,} tokens: "
          f"peak {found['peak_pss_gb']} GB, {verdict} the limit of {LIMIT_GB} GB")  # fmt: skip


if __name__ == "__main__":
    main()
