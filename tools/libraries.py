"""Writes libraries.yaml: the pinned version of every library that a stage's result depends on, from requirements.lock.

Stages name its keys as params in dvc.yaml, so that DVC makes again what another version would make differently, and
nothing else. A test keeps it, dvc.yaml and the lock equal. `tools/lock.sh` calls this.
"""

import re
from pathlib import Path

from ruamel.yaml import YAML

from pico import identity

ROOT = Path(__file__).resolve().parent.parent

HEADER = "# Made by tools/libraries.py from requirements.lock. Stages name these keys as params; see dvc.yaml.\n"


def entry_points() -> list[str]:
    """Returns the module that each stage of dvc.yaml runs."""
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return [f"flows.{stage['cmd'].split()[3]}" for stage in stages.values()]


def pinned() -> dict[str, set[str]]:
    """Returns the versions of each package in requirements.lock: several where releases of Python differ."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", line):
            found.setdefault(match[1].lower().replace("_", "-"), set()).add(match[2])
    return found


def contents() -> str:
    """Returns the text of libraries.yaml. Raises ValueError for a library that the lock pins to several versions."""
    versions = pinned()
    names = sorted(set().union(*(identity.library_names(entry) for entry in entry_points())))
    if unclear := [name for name in names if len(versions[name]) > 1]:
        raise ValueError(f"requirements.lock has several versions of {', '.join(unclear)}")
    return HEADER + "".join(f"{name}: {min(versions[name])}\n" for name in names)


if __name__ == "__main__":
    (ROOT / "libraries.yaml").write_text(contents(), encoding="utf-8")
