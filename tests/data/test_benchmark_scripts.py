"""The benchmarks of preparation run on this repository's own text, and their figures hang together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(script, *arguments, folder):
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--small", "--json", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())
    return json.loads(done.stdout)


def test_all_sides_of_the_speed_benchmark_encode_the_same_text(tmp_path):
    arguments = ("--megabytes", "1", "--processes", "1", "--repeats", "1", "--seq-len", "64")
    found = run("tokenize_speed.py", *arguments, folder=tmp_path)
    tokens = found["tokens"]
    assert tokens["ours_same"] == tokens["encode_batch"] == tokens["encode_batch_fast"]  # nothing here is there twice
    assert 0 < tokens["ours_all"] <= tokens["ours_same"]
    lost = tokens["encode_batch"] - tokens["datasets"]  # of each batch of the peer the tail of less than a row
    assert 0 <= lost < 65 * (found["corpus"]["documents"] // 1000 + 1)
    for name, ratio in found["ratios"].items():
        one, other = name.split(" / ")
        rates = found["tokens_per_second"]
        assert ratio == pytest.approx(rates[one] / rates[other], rel=0.01)
    assert set(found["targets"]) <= set(found["ratios"])


@pytest.mark.slow
def test_the_memory_benchmark_sees_every_stage(tmp_path):
    found = run("prepare_memory.py", "--gigabytes", "0.002", folder=tmp_path)
    assert [stage["stage"] for stage in found["stages"]] == ["fetch", "prepare", "validate"]
    for stage in found["stages"]:
        assert 0.1 < stage["private_gb"] <= stage["pss_gb"] <= stage["rss_gb"]
        assert {"stage", "Prefect server"} <= set(stage["at_peak_gb"])
        assert stage["samples"] > 2
    assert found["peak_pss_gb"] == max(stage["pss_gb"] for stage in found["stages"])
    assert found["within"] == (found["peak_pss_gb"] < found["limit_gb"])
    # What was planted to be found is found, and edited copies are not taken for duplicates.
    copies, documents = found["corpus"]["copies"], found["documents"]
    assert copies == 2
    assert found["duplicates_dropped"] > 0
    assert found["near_duplicates_dropped"] > 0
    assert found["duplicates_dropped"] + found["near_duplicates_dropped"] < 0.2 * documents


@pytest.mark.slow
def test_a_kill_loses_no_block_and_workers_do_not_matter(tmp_path):
    found = run("prepare_resume.py", "--gigabytes", "0.002", folder=tmp_path)
    assert found["redone"] == 0
    assert found["equal"]
    assert found["blocks_tokenized_before_the_kill"] >= found["blocks"] // 2 > 0
    assert found["files_before_the_kill"] > found["blocks"]
    assert found["files_compared"] > len(found["shards"]) > 0
