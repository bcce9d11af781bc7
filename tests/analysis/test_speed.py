"""The benchmark runs, and both its sides compute the same values."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_both_sides_of_the_benchmark_agree() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "analysis_speed.py"), "--small", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["largest_relative_difference"] < 2e-3  # the plain side's SVD is in float32
    assert "layer 0" in found["plain_measured"]
    assert found["ratio"] > 0
    assert 0 < found["memory_gb"] < 6
