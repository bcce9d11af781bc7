"""Measures a kill, and that workers do not matter: `python benchmarks/prepare_resume.py [--gigabytes 0.5] [--json]`.

Documents of that size (benchmarks/made_corpus.py, by the real `fetch`) are prepared three times, each time by a process
of its own: on Ray with two workers, where the process and all below it get SIGKILL once half of the blocks are
tokenized; again from there with one process, and no Ray; and from nothing on Ray with two workers.

`redone`: files by block that were there before the kill and were written again. `equal`: whether every file of
`data/tokens` has the same sha256 after the second and the third.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from made_corpus import ROOT, domains_of, place, write_corpus
from prepare_memory import SETTINGS, SMALL_SETTINGS, make_project, run_stage

from pico.data.preparation.blocks import find_blocks
from pico.files import read_json, sha256_file

PREPARE = """
import json, os, sys
from pathlib import Path
from pico.config import load_params
from pico.data.preparation.pipeline import prepare
workers, target = int(sys.argv[1]), Path(sys.argv[2])
if workers > 1:
    import ray
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, object_store_memory=2**28)
def step(function):
    def called(*arguments):
        result = function(*arguments)
        if function.__name__ == "write_uses":  # the last one: afterwards the working folder goes
            files = {str(p): p.stat().st_mtime_ns for p in arguments[0].folder.rglob("*") if p.is_file()}
            Path(str(target) + ".files.json").write_text(json.dumps(files))
        return result
    return called
p = load_params("params.yaml")
prepare(Path("data/documents"), target / "tokens", tokenizer=p.tokenizer, cleaning=p.cleaning, packing=p.packing,
        vocab_size=p.model.vocab_size, runs=target / "runs", step=step)
"""
KINDS = ("index", "cleaned", "clean", "quality", "bands", "tokens", "ids")
"""Folders of files by block."""


def start(folder: Path, workers: int, target: Path) -> subprocess.Popen:
    """Begins to prepare."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    alone = {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", "RAY_USAGE_STATS_ENABLED": "0",
             "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", PREPARE, str(workers), str(target)], cwd=folder, env=kept | alone)


def files_of(work: Path) -> dict[str, int]:
    """Returns the files by block that are whole -> when they were written."""
    paths = [path for kind in KINDS for path in (work / kind).glob("[0-9]*")]
    return {str(path): path.stat().st_mtime_ns for path in paths}


def kill_all(process: subprocess.Popen) -> None:
    """Sends SIGKILL to the process and everything below it."""
    for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        try:
            one.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait()


def finished(process: subprocess.Popen) -> None:
    """Waits for it. Raises RuntimeError where it failed."""
    if process.wait():
        raise RuntimeError(f"preparing ended with status {process.returncode}")


def hashes(tokens: Path) -> dict[str, str]:
    """Returns the sha256 of every file below it."""
    return {
        path.relative_to(tokens).as_posix(): sha256_file(path) for path in sorted(tokens.rglob("*")) if path.is_file()
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Makes the documents, and prepares them three times."""
    with place(options.folder) as folder:
        if not (folder / "data" / "documents").exists():
            corpus = write_corpus(folder / "corpus", int(options.gigabytes * 1e9), domains_of(own=options.small))
            make_project(folder, SMALL_SETTINGS if options.small else SETTINGS, corpus["domains"])
            run_stage(folder, "fetch")
        blocks = len(find_blocks(folder / "data" / "documents"))
        times = {}
        begin = time.monotonic()
        process = start(folder, 2, folder / "killed")
        while process.poll() is None:
            work = next((folder / "killed" / "runs" / "prepare").glob("*"), folder)
            if len(list((work / "tokens").glob("[0-9]*"))) >= blocks // 2:
                break
            time.sleep(0.05)
        if process.poll() is not None:
            raise RuntimeError(f"preparing ended with status {process.returncode} before it could be killed")
        kill_all(process)
        times["until_killed"] = time.monotonic() - begin
        before = files_of(work)
        begin = time.monotonic()
        finished(start(folder, 1, folder / "killed"))
        times["one_process_from_there"] = time.monotonic() - begin
        after = read_json(folder / "killed.files.json")
        begin = time.monotonic()
        finished(start(folder, 2, folder / "whole"))
        times["two_workers_from_nothing"] = time.monotonic() - begin
        one, two = hashes(folder / "killed" / "tokens"), hashes(folder / "whole" / "tokens")
        shards = sorted(name for name in one if name.startswith("train/"))
        return {
            "bytes": sum(entry["bytes"] for entry in read_json(folder / "data" / "documents" / "sources.json")),
            "blocks": blocks,
            "blocks_tokenized_before_the_kill": sum("/tokens/" in name for name in before),
            "files_before_the_kill": len(before),
            "redone": sum(after.get(name) != written for name, written in before.items()),
            "seconds": {name: round(value, 1) for name, value in times.items()},
            "files_compared": len(one),
            "equal": one == two,
            "shards": {name: one[name][:16] for name in shards},
        }


def main() -> None:
    """Prints the figures; fails where something was redone or differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=0.5, help="of text")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--folder", type=Path, help="where to work, and leave everything; documents there are used")
    parser.add_argument("--small", action="store_true", help="text of this repository: for tests")
    options = parser.parse_args()
    found = measure(options)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        print(f"killed with {found['blocks_tokenized_before_the_kill']} of {found['blocks']} blocks tokenized; "
              f"{found['redone']} of {found['files_before_the_kill']} redone; equal: {found['equal']}")  # fmt: skip
    sys.exit(0 if found["equal"] and not found["redone"] else 1)


if __name__ == "__main__":
    main()
