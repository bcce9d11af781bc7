"""The on-disk checkpoint: what training writes and everything else reads. No pickle.

    step_00000100/
        model.safetensors               parameters, under the names of the published pico-decoder
        config.json                     the DecoderConfig
        optimizer.safetensors           only where training can resume from here
        trainer.json                    step, tokens seen, RNG, fingerprint of data and settings, ...
        learning_dynamics/*.safetensors {train,val}_{activations,gradients}
        manifest.json                   written last: sha256 and size of every other file

A folder is written aside, flushed, and renamed, so a checkpoint exists whole or not at all; the manifest shows later
damage.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pico.errors import PicoError
from pico.files import fsync_folder, fsync_tree, full_disk_named, read_json, sha256_file, write_json

MANIFEST = "manifest.json"
DELETE = "delete this checkpoint folder; training resumes from the one before it"
DYNAMICS = "learning_dynamics"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that is known to have a manifest. Tensors are read lazily, memory-mapped."""

    folder: Path

    @property
    def step(self) -> int:
        """The number of optimiser steps taken."""
        return int(self.folder.name.removeprefix("step_"))

    @property
    def trainer(self) -> dict[str, Any]:
        """The contents of trainer.json."""
        return read_json(self.folder / "trainer.json")

    @property
    def config(self) -> dict[str, Any]:
        """The DecoderConfig, as a dict."""
        return read_json(self.folder / "config.json")

    def model(self, prefix: str = "") -> dict[str, Tensor]:
        """Returns the parameters by name: all, or those whose names start with `prefix`."""
        return read_tensors(self.folder / "model.safetensors", prefix)

    def optimizer(self) -> dict[str, Tensor]:
        """Returns the optimiser's state; see pico.train. Raises PicoError where this checkpoint has none."""
        return read_tensors(self.folder / "optimizer.safetensors")

    def dynamics(self, split: str, kind: str, prefix: str = "") -> dict[str, Tensor]:
        """Returns captured tensors by module or parameter name; split: train or val; kind: activations or gradients."""
        return read_tensors(self.folder / DYNAMICS / f"{split}_{kind}.safetensors", prefix)

    def dynamics_metadata(self, split: str, kind: str) -> dict[str, str]:
        """Returns the metadata of a file of captured tensors, such as `positions`; see pico.train.capture."""
        with safe_open(self.folder / DYNAMICS / f"{split}_{kind}.safetensors", framework="pt") as file:
            return file.metadata() or {}


def read_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Reads the tensors whose names start with `prefix` from a safetensors file, memory-mapped.

    Raises PicoError naming a missing or torn file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
    except FileNotFoundError:
        raise PicoError(
            f"{path} does not exist",
            mend="it was not written: learning_dynamics.layers says what is",
        ) from None
    except Exception as error:  # safetensors raises its own SafetensorError, OSError and ValueError for torn files
        raise PicoError(
            f"{path} cannot be read as safetensors: {error}",
            mend="delete this checkpoint; training resumes from the one before it",
        ) from error


def write_checkpoint(
    folder: Path,
    *,
    model: Mapping[str, Tensor],
    config: Mapping[str, Any],
    trainer: Mapping[str, Any],
    optimizer: Mapping[str, Tensor] | None = None,
    dynamics: Mapping[str, Mapping[str, Tensor]] | None = None,
    dynamics_metadata: Mapping[str, Mapping[str, str]] | None = None,
) -> Checkpoint:
    """Writes `folder` (`.../step_00000100`) whole or not at all, replacing what was there.

    `dynamics` maps "train_activations" and the like to tensors by name, `dynamics_metadata` to the strings that their
    safetensors headers carry. Raises PicoError when the disk is full.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with full_disk_named(folder):
        (partial / DYNAMICS).mkdir(parents=True)
        _save(partial / "model.safetensors", model)
        if optimizer is not None:
            _save(partial / "optimizer.safetensors", optimizer)
        for name, tensors in (dynamics or {}).items():
            _save(partial / DYNAMICS / f"{name}.safetensors", tensors, (dynamics_metadata or {}).get(name))
        write_json(partial / "config.json", dict(config))
        write_json(partial / "trainer.json", dict(trainer))
        write_json(partial / MANIFEST, _manifest(partial))
        fsync_tree(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        fsync_folder(folder.parent)
    return Checkpoint(folder)


def drop_optimizer(checkpoint: Checkpoint) -> None:
    """Removes the optimiser's state, which only a resume needs. Safe to interrupt: the manifest goes first."""
    files = read_manifest(checkpoint.folder)
    if files.pop("optimizer.safetensors", None) is not None:
        write_json(checkpoint.folder / MANIFEST, {"format": 1, "files": files})
    (checkpoint.folder / "optimizer.safetensors").unlink(missing_ok=True)


def verify(folder: Path) -> Checkpoint:
    """Checks every file against the manifest. Raises PicoError naming the file that is missing, torn or altered."""
    for name, expected in read_manifest(folder).items():
        path = folder / name
        if not path.exists():
            raise PicoError(f"{path} is missing", mend=DELETE)
        if path.stat().st_size != expected["bytes"]:
            raise PicoError(f"{path} has {path.stat().st_size} bytes, not {expected['bytes']}", mend=DELETE)
        if sha256_file(path) != expected["sha256"]:
            raise PicoError(f"{path} was altered: its sha256 is not the manifest's", mend=DELETE)
    return Checkpoint(folder)


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns `bytes` and `sha256` of each file by name. Raises PicoError for a missing or damaged manifest."""
    if not (folder / MANIFEST).exists():
        raise PicoError(f"{folder} has no {MANIFEST}: it was never finished", mend=DELETE)
    try:
        manifest = read_json(folder / MANIFEST)
        entries = manifest["files"].items()
        files = {name: {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])} for name, entry in entries}
        if manifest.keys() != {"format", "files"} or manifest["format"] != 1 or "model.safetensors" not in files:
            raise ValueError("it is not of format 1")
    except (PicoError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise PicoError(f"{folder / MANIFEST} is damaged: {type(error).__name__}: {error}", mend=DELETE) from error
    return files


def checkpoints(run: Path) -> list[Checkpoint]:
    """Returns all finished checkpoints of a run, by step. Their contents are not verified."""
    folders = sorted((run / "checkpoints").glob(STEP_GLOB))
    return [Checkpoint(folder) for folder in folders if (folder / MANIFEST).exists()]


STEP_GLOB = f"step_{'[0-9]' * 8}"
"""Folders named by `step_name`."""


def step_name(step: int) -> str:
    """Returns the folder name of a step, sorting as numbers do."""
    return f"step_{step:08d}"


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes safetensors, in name order and contiguous, so that equal tensors give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    save_file(contents, path, metadata=dict(metadata) if metadata else None)
    if metadata and len(metadata) > 1:
        _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Puts the metadata of a safetensors header in key order: the library writes them in a random one."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        data = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(data) > size:
            raise AssertionError(f"{path}: a re-ordered header must not grow")
        file.seek(8)
        file.write(data.ljust(size))


def _manifest(folder: Path) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in files
    }
    return {"format": 1, "files": entries}
