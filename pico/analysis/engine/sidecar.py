"""What was computed of one layer of one checkpoint, kept in files so that the states need not be read again.

    <run>/<step>_<fingerprint>/layer_3.index.json           the matrices of each component: shape, type, largest entry
                               layer_3.spectra.safetensors  singular values
                               layer_3.factors.safetensors  (n, min(n, p)) factors of Gram matrices
                               layer_3.values.json          measurements

The fingerprint is of the checkpoint's manifest and of the code that makes matrices; a measurement's own key also holds
its metric's code and settings and what it compares with. So what is found is what would be computed, to the bit. A
file that is torn or missing costs time, never correctness. Writers that race write equal entries; the last one wins.
"""

import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from pico.analysis.metrics.registry import Measurement, Metric
from pico.checkpoint import MANIFEST, Checkpoint
from pico.files import canonical_json, fingerprint, full_disk_named, sha256_file
from pico.identity import identity, module_file

PENDING_BYTES = 2**26
"""Arrays of one kind that wait in memory for `flush`."""


def checkpoint_folder(root: Path, run: str, checkpoint: Checkpoint) -> Path:
    """Where the sidecars of a checkpoint lie."""
    made_by = {"manifest": sha256_file(checkpoint.folder / MANIFEST), **identity("pico.analysis.engine.layer")}
    return root / run / f"{checkpoint.step}_{fingerprint(made_by)}"


def drop_others(root: Path, run: str, current: set[Path]) -> None:
    """Deletes the sidecars of `run` that belong to other checkpoints or to other code, so that they do not pile up."""
    for folder in (root / run).glob("*_*"):
        if folder not in current:
            shutil.rmtree(folder, ignore_errors=True)


def metric_fingerprint(metric: Metric) -> str:
    """Returns the fingerprint of all that a metric's value depends on, but for its operands and settings."""
    module = metric.function.__module__
    code = identity(module) if module_file(module) else inspect.getsource(metric.function)
    declared = [metric.name, metric.target, metric.elementwise, metric.gram, metric.spectral, metric.min_rows]
    return fingerprint([declared, code, identity("pico.analysis.metrics.registry")])


class Sidecar:
    """The kept results of one layer of one checkpoint. With no folder, plain values alone, for its life."""

    def __init__(self, folder: Path | None, layer: int) -> None:
        self._folder, self._layer = folder, layer
        self._new: dict[str, dict[str, Any]] = {"index": {}, "values": {}, "spectra": {}, "factors": {}}

    def get(self, kind: str, key: str) -> Any:
        """The entry, or None. kind: index or values (plain values), spectra or factors (float64 arrays)."""
        if key in self._new[kind]:
            return self._new[kind][key]
        if kind in ("index", "values"):
            return self._json[kind].get(key)
        return self._array(kind, key)

    def put(self, kind: str, key: str, value: Any) -> None:
        """Keeps an entry; it is on disk after `flush`, which many large entries cause by themselves."""
        arrays = kind in ("spectra", "factors")
        if arrays and self._folder is None:
            return  # they would fill the memory to no end
        self._new[kind][key] = value
        if arrays and sum(array.nbytes for array in self._new[kind].values()) > PENDING_BYTES:
            self.flush()

    def measured(self, key: str, compute: Callable[[], Measurement]) -> Measurement:
        """The kept measurement of that key, or what `compute` gives."""
        kept = self.get("values", key)
        if kept is None:
            found = compute()
            kept = [found.value, found.status, found.n, found.p, found.rank]
            self.put("values", key, kept)
        return Measurement(*kept)

    def flush(self) -> None:
        """Adds what is new to the files, each replaced as a whole."""
        if self._folder is None:
            return
        for kind, entries in self._new.items():
            if not entries:
                continue
            path = self._path(kind)
            if kind in ("index", "values"):
                _replace(path, canonical_json(_read_json(path) | entries).encode())
            else:
                arrays = _read_arrays(path) | {key: _narrow(array) for key, array in entries.items()}
                _replace(path, save({key: np.ascontiguousarray(arrays[key]) for key in sorted(arrays)}))
            entries.clear()
        self.__dict__.pop("_json", None)

    def _path(self, kind: str) -> Path:
        assert self._folder is not None
        ending = "json" if kind in ("index", "values") else "safetensors"
        return self._folder / f"layer_{self._layer}.{kind}.{ending}"

    @cached_property
    def _json(self) -> dict[str, dict[str, Any]]:
        if self._folder is None:
            return {"index": {}, "values": {}}
        return {kind: _read_json(self._path(kind)) for kind in ("index", "values")}

    def _array(self, kind: str, key: str) -> Any:
        if self._folder is None:
            return None
        try:
            with safe_open(self._path(kind), framework="numpy") as file:
                return file.get_tensor(key).astype(np.float64) if key in file.keys() else None  # noqa: SIM118
        except Exception:  # missing or torn, which safetensors tells by errors of several kinds: computed anew
            return None


def _narrow(array: np.ndarray) -> np.ndarray:
    """In float32 where nothing is lost by it."""
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    return single if np.array_equal(single, array) else array


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception:  # as in Sidecar._array
        return {}


def _replace(path: Path, data: bytes) -> None:
    """An atomic write, under a temporary name that no other writer of the same file has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_named(path):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
