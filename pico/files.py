"""Atomic writes, and the fingerprints that name working folders."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pico.errors import PicoError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a disk, or a share of it, that is full."""


def canonical_json(value: Any, *, indent: int | None = None) -> str:
    """Returns JSON with sorted keys and no NaN: equal values give equal bytes."""
    separators = (",", ":") if indent is None else None
    return json.dumps(value, sort_keys=True, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """Returns the first 16 hex digits of the sha256 of `value`'s canonical JSON: the name of a working folder."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def sha256_file(path: Path) -> str:
    """Returns the sha256 of a file, in hex; read in pieces, so any size will do."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(folder: Path) -> None:
    """Makes renames and new entries in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Flushes every file and folder below `folder` to disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            fsync_folder(path)
    fsync_folder(folder)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes `data` to `path` by way of a temporary neighbour and a rename; no reader ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with full_disk_named(path):
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes canonical, indented JSON atomically."""
    write_atomic(path, canonical_json(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Returns what a JSON file holds. Raises PicoError naming one that is missing or broken."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise PicoError(f"{path} does not exist", mend="run the stage that makes it: dvc repro") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PicoError(f"{path} is not valid JSON ({error})", mend="delete it and run: dvc repro") from error


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turns 'no space left' into a PicoError that says how much is free and where."""
    try:
        yield
    except Exception as error:
        # The errors of safetensors and DuckDB are no OSErrors: theirs is in the text alone.
        if getattr(error, "errno", None) in FULL or any(os.strerror(number) in str(error) for number in FULL):
            free = shutil.disk_usage(Path(path).parent).free / 1e6
            raise PicoError(
                f"no space left while writing {path} ({free:.0f} MB free)",
                mend="free some space and run the same command again: finished work is kept",
            ) from error
        raise


@contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """Gives an empty folder beside `target`; on success it becomes `target` by rename, on failure it is removed.

    A folder left by a process that was killed is cleared at the next try. Use it for outs that are made in one go;
    for resumable work see `working_folder` and `publish`.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with full_disk_named(partial):
            yield partial
            publish(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def publish(folder: Path, target: Path) -> None:
    """Moves a finished folder to its place in one step, replacing what was there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fsync_tree(folder)
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(folder, target)
    fsync_folder(target.parent)


def working_folder(stage: str, identity: Any, root: Path = Path("runs")) -> Path:
    """Returns the resumable folder `runs/<stage>/<fingerprint of identity>/` of a stage; kept across kills."""
    folder = root / stage / fingerprint(identity)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
