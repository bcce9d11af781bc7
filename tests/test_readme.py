"""The README's own commands, run one after the other in a fresh clone, at smoke scale; then stages without the lab."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)

COLD = ("prepare", "analyze@tiny", "benchmark@tiny", "report")
"""Stages that must leave the same outs without the lab; training has tests of its own."""


def test_the_readme_shows_the_main_commands():
    text = "\n".join(BLOCKS)
    for command in ("make repro", "make test", "dvc metrics show", "dvc exp run", "pico up", "python -m flows.suite"):
        assert command in text


def test_links_in_the_pages_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#]+)\)", prose):
            assert "://" in link or (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_commands_of_the_readme_work(tmp_path):
    clone = tmp_path / "pico"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    # The environment is this checkout's; its stamp is newer than the clone's lock, so make installs nothing.
    (clone / ".venv").symlink_to(ROOT / ".venv")
    (ROOT / ".venv" / ".installed").touch()
    script = "\n".join(
        [
            "set -euo pipefail",
            'export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH="$PWD"',
            "git config user.name Reader && git config user.email reader@example.org",
            "trap 'pico down' EXIT",
            "pico scale smoke",
            "set -x",
            *(block.replace("make test\n", "") for block in BLOCKS),  # this test is part of it
            "dvc status --quiet",
            # The lab is down: stages in processes of their own, with a Prefect and a Ray of their own.
            "cp dvc.lock dvc.lock.warm",
            f"dvc repro --force --single-item {' '.join(COLD)}",
            "cmp dvc.lock dvc.lock.warm",
        ]
    )
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "RAY_", "COV_", "OMP_"))
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=clone, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "Data and pipelines are up to date" in done.stdout
    assert (clone / "reports" / "index.html").stat().st_size > 10_000
