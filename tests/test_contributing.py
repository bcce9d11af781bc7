"""CONTRIBUTING.md tells the truth: its examples, followed to the letter in a copy of the project, pass their tests."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(r"[Ii]n `([\w/]+\.py)`[^\n]*:\n\n```python\n(.*?)```", re.DOTALL)


@pytest.mark.slow
def test_the_examples_work_as_they_stand(tmp_path):
    examples = EXAMPLE.findall(PAGE)
    assert [path.split("/")[0] for path, _ in examples] == ["pico", "tests"] * 3
    tracked = subprocess.run(
        ["git", "ls-files", "pico", "tests", "pyproject.toml"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for file in tracked.stdout.split():
        if (ROOT / file).is_file():
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, tmp_path / file)
    for path, code in examples:
        file = tmp_path / path
        text = file.read_text()
        if path == "pico/optimizers.py":  # above the union, which names it then
            before, union, after = text.partition("Optimizer = Annotated[")
            assert union
            file.write_text(f"{before}{code}\n\n{union}SignSGD | {after}")
        else:
            file.write_text(f"{text}\n\n{code}")
    tests = [
        f"{path}::{name}" for path, code in examples for name in re.findall(r"^def (test_\w+)", code, re.MULTILINE)
    ]
    assert len(tests) == 3
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 passed" in run.stdout


def test_every_file_and_folder_that_it_names_is_there():
    named = re.findall(r"`((?:pico|flows|tests|conf|docs|tools)/[\w./]*)`", PAGE)
    for name in named + re.findall(r"\]\(([\w/.]+)\)", PAGE):
        to_be_made = name == "conf/optimizer/signsgd.yaml" or "NAME" in name
        assert to_be_made or (ROOT / name).exists(), name
