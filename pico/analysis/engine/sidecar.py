"""One layer of one checkpoint, and the files that keep what was computed of it, so that its states are read once.

    <run>/<step>_<fingerprint>/layer_3.index.json           the matrices of each component: shape, type, largest entry
                               layer_3.spectra.safetensors  singular values
                               layer_3.factors.safetensors  (n, min(n, p)) factors of Gram matrices
                               layer_3.values.json          measurements

The fingerprint is of the checkpoint's manifest, of the code and libraries that make matrices, and of the device; a
measurement's own key also holds its metric's code and settings and what it compares with. So what is found is what
would be computed, to the bit. A file that is torn or missing costs time, never correctness. Writers that race write
equal entries; the last one wins.
"""

import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from pico.analysis.engine import blocks
from pico.analysis.engine.components import MODEL, Key, State, get_component, read_state
from pico.analysis.metrics.matrix import Array, Matrix, narrow, shifted
from pico.analysis.metrics.registry import Measurement, Metric
from pico.checkpoint import MANIFEST, Checkpoint
from pico.files import canonical_json, fingerprint, full_disk_named, sha256_file
from pico.identity import device_name, identity, module_file

_REGISTERED = (blocks,)  # importing it registers its components

PENDING_BYTES = 2**26
"""Arrays of one kind that wait in memory for `flush`."""


def checkpoint_folder(root: Path, run: str, checkpoint: Checkpoint, device: str = "cpu") -> Path:
    """Returns the folder of a checkpoint's sidecars; device: "cpu" or "cuda", where its matrices are computed."""
    made_by = {
        "manifest": sha256_file(checkpoint.folder / MANIFEST),
        "device": device_name(device),
        **identity("pico.analysis.engine.sidecar"),
    }
    return root / run / f"{checkpoint.step}_{fingerprint(made_by)}"


def drop_others(root: Path, run: str, current: set[Path]) -> None:
    """Deletes the sidecars of `run` of other checkpoints, other code or another device, so that they do not pile up."""
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
        """Returns the entry, or None. kind: index or values (plain values), spectra or factors (float64 arrays)."""
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
        """Returns the kept measurement of that key, or what `compute` gives."""
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
    """Converts to float32 where nothing is lost by it."""
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
    """Returns an atomic write, under a temporary name that no other writer of the same file has."""
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


class KeptMatrix(Matrix):
    """A Matrix whose shape, and spectrum where it was kept, are known; its entries are made when needed."""

    def __init__(self, header: dict[str, Any], make: Callable[[], Matrix], spectrum: Array | None) -> None:
        self.n, self.p, self.dtype = header["n"], header["p"], header["dtype"]
        self._structural_rank, self._make = header["rank"], make
        self.__dict__["size"] = float(header["size"])  # the value of a cached property
        if spectrum is not None:
            self.__dict__["spectrum"] = spectrum

    @property
    def largest_rank(self) -> int:
        return int(self._structural_rank)

    def __getattr__(self, name: str) -> Any:
        """Returns the entries or factors, which are made now."""
        if name.startswith("__") or name == "_make":
            raise AttributeError(name)
        made = self._make()
        for own in ("dense", "factors"):
            self.__dict__[own] = getattr(made, own)
        return self.__dict__[name] if name in self.__dict__ else getattr(made, name)


def header(matrix: Matrix) -> dict[str, Any]:
    """Returns what a KeptMatrix knows of a matrix, as plain values."""
    return {
        "n": matrix.n,
        "p": matrix.p,
        "dtype": matrix.dtype,
        "rank": matrix.largest_rank,
        "size": repr(matrix.size),
    }


def gram_factor(matrix: Matrix) -> Array:
    """Computes (n, min(n, k)) rows with the inner products of the matrix's centred rows, in the fewest columns.

    Columns are centred first: of rows that differ by rounding alone nothing is then left. NaN where the matrix holds
    NaN or infinity.
    """
    if not matrix.finite:
        return np.full((matrix.n, min(matrix.features.shape)), np.nan)
    return shifted(narrow(matrix.centred), matrix.exponent)


class Layer:
    """One layer of one checkpoint: its matrices by key. The states are opened when something asks for entries."""

    def __init__(self, folder: Path, layer: int, components: Sequence[str], sidecars: Path | None) -> None:
        """Opens a layer; sidecars: the folder of this checkpoint's, see `checkpoint_folder`."""
        self.checkpoint, self.layer = Checkpoint(folder), layer
        self.identity = f"{sidecars.name if sidecars else folder}/{layer}"
        """The same for equal contents; without sidecars it tells only the layers of one process apart."""
        self._components = tuple(name for name in components if get_component(name).of_model == (layer == MODEL))
        self.sidecar = Sidecar(sidecars, layer)

    @cached_property
    def state(self) -> State:
        return read_state(self.checkpoint, self.layer)

    @cached_property
    def _makers(self) -> dict[Key, Callable[[], Matrix]]:
        return {key: make for name in self._components for key, make in get_component(name).function(self.state)}

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """The keys of all matrices of the components, in their order."""
        kept = [self.sidecar.get("index", f"keys of {name}") for name in self._components]
        if all(one is not None for one in kept):
            return tuple(Key(*fields) for one in kept for fields in one)
        for name in self._components:
            own = [list(key) for key in self._makers if key.component == name]
            self.sidecar.put("index", f"keys of {name}", own)
        return tuple(self._makers)

    def matrix(self, key: Key) -> Matrix:
        """Returns the matrix of that key: made now, or what is kept of it."""
        name = _name(key)
        known = self.sidecar.get("index", name)
        if known is None:
            made = self._makers[key]()
            self.sidecar.put("index", name, header(made))
            return made
        return KeptMatrix(known, lambda: self._makers[key](), self.sidecar.get("spectra", name))

    def keep_spectrum(self, key: Key, matrix: Matrix) -> None:
        """Keeps the spectrum, where some metric had it computed."""
        if "spectrum" in matrix.__dict__ and self.sidecar.get("spectra", _name(key)) is None:
            self.sidecar.put("spectra", _name(key), matrix.spectrum)

    def factor(self, key: Key, matrix: Matrix | None = None) -> Matrix:
        """Returns the matrix's Gram factor as a Matrix, kept, or made (of `matrix`, where that is at hand)."""
        source = matrix if matrix is not None else self.matrix(key)
        found = self.sidecar.get("factors", _name(key))
        if found is None:
            found = gram_factor(source)
            self.sidecar.put("factors", _name(key), found)
        return Matrix(found, p=source.p, dtype=source.dtype)


def _name(key: Key) -> str:
    return canonical_json(list(key))
