"""Folders with the repository's settings, in which the command line and flows can be run as a user runs them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from pico.cli.settings import compose, write_params

REPOSITORY = Path(__file__).resolve().parents[1]


def clean_environment() -> dict[str, str]:
    """Returns this process's environment without a user's Prefect and Ray, and without a home folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RAY_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return {**kept, "PATH": path, "HOME": "", "PYTHONPATH": str(REPOSITORY)}


def make_project(root: Path) -> Path:
    """Makes a folder with the repository's graph and the settings of scale laptop, enough for `pico` and for flows."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copytree(REPOSITORY / "conf", root / "conf")
    for name in ("dvc.yaml", "libraries.yaml"):
        shutil.copy(REPOSITORY / name, root)
    write_params(root, compose(root, "laptop", [])[1])
    return root


def run_python(root: Path, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs Python in a project. Returns its exit status and output."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=root, env=clean_environment(), capture_output=True, text=True, timeout=timeout
    )
