"""The benchmark beside a peer measures both sides, and says where a peer is missing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_speed.py"


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), "--shapes", "test", "--steps", "2", "--threads", "1", "--json", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_both_sides_take_real_steps():
    found = run()
    assert found.returncode == 0, found.stderr
    (shape,) = json.loads(found.stdout)["shapes"]
    ours, theirs = shape["ours"], shape["transformers"]
    assert shape["ratio"] == pytest.approx(ours["tokens_per_second"] / theirs["tokens_per_second"], abs=1e-3)
    for side in (ours, theirs):
        share = side["tokens_per_second"] * shape["flops_per_token"] / shape["peak_flops"]
        assert side["peak_share"] == pytest.approx(share, abs=1e-3)
        assert 0 < side["tokens_per_second"] <= side["fastest_tokens_per_second"] + 0.1


def test_an_interpreter_that_cannot_run_the_peer_ends_it_with_a_message(tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such peer >&2\nexit 3\n")
    broken.chmod(0o755)
    found = run("--peer", "litgpt", "--peer-python", str(broken))
    assert found.returncode == 1
    assert "no such peer" in found.stderr
    assert "the process of litgpt ended" in found.stderr
