"""Matrices of one layer of one checkpoint by key, made from the states only where what is kept of them will not do."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pico.analysis.engine.components import MODEL, OF_THE_MODEL, Key, State, get_component, read_state
from pico.analysis.engine.sidecar import Sidecar
from pico.analysis.metrics.matrix import Array, Matrix, shifted, triangle
from pico.checkpoint import Checkpoint
from pico.files import canonical_json


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
        """What a Matrix is given when it is made: its entries or its factors."""
        if name.startswith("__") or name == "_make":
            raise AttributeError(name)
        made = self._make()
        for own in ("dense", "factors"):
            self.__dict__[own] = getattr(made, own)
        return self.__dict__[name] if name in self.__dict__ else getattr(made, name)


def header(matrix: Matrix) -> dict[str, Any]:
    """What a KeptMatrix knows of a matrix; JSON holds it."""
    return {
        "n": matrix.n,
        "p": matrix.p,
        "dtype": matrix.dtype,
        "rank": matrix.largest_rank,
        "size": repr(matrix.size),
    }


def gram_factor(matrix: Matrix) -> Array:
    """(n, min(n, k)): rows with the inner products of the matrix's centred rows, in the fewest columns.

    Columns are centred first: of rows that differ by rounding alone nothing is then left. NaN where the matrix holds
    NaN or infinity.
    """
    if not matrix.finite:
        return np.full((matrix.n, min(matrix.features.shape)), np.nan)
    rows = matrix.centred
    narrow = rows if rows.shape[1] <= rows.shape[0] else triangle(rows.T).T
    return shifted(narrow, matrix.exponent)


class Layer:
    """One layer of one checkpoint: its matrices by key. The states are opened when something asks for entries."""

    def __init__(self, folder: Path, layer: int, components: Sequence[str], sidecars: Path | None) -> None:
        """sidecars: the folder of this checkpoint's; see `checkpoint_folder`."""
        self.checkpoint, self.layer = Checkpoint(folder), layer
        self.identity = f"{sidecars.name if sidecars else folder}/{layer}"
        """The same for equal contents; without sidecars it tells only the layers of one process apart."""
        self._components = tuple(name for name in components if (name in OF_THE_MODEL) == (layer == MODEL))
        self._sidecar = Sidecar(sidecars, layer)

    @cached_property
    def state(self) -> State:
        return read_state(self.checkpoint, self.layer)

    @cached_property
    def _makers(self) -> dict[Key, Callable[[], Matrix]]:
        return {key: make for name in self._components for key, make in get_component(name)(self.state)}

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """The keys of all matrices of the components, in their order."""
        kept = [self._sidecar.get("index", f"keys of {name}") for name in self._components]
        if all(one is not None for one in kept):
            return tuple(Key(*fields) for one in kept for fields in one)
        for name in self._components:
            own = [list(key) for key in self._makers if key.component == name]
            self._sidecar.put("index", f"keys of {name}", own)
        return tuple(self._makers)

    def matrix(self, key: Key) -> Matrix:
        """The matrix of that key: made now, or what is kept of it."""
        name = _name(key)
        known = self._sidecar.get("index", name)
        if known is None:
            made = self._makers[key]()
            self._sidecar.put("index", name, header(made))
            return made
        return KeptMatrix(known, lambda: self._makers[key](), self._sidecar.get("spectra", name))

    def keep_spectrum(self, key: Key, matrix: Matrix) -> None:
        """Keeps the spectrum, where some metric had it computed."""
        if "spectrum" in matrix.__dict__ and self._sidecar.get("spectra", _name(key)) is None:
            self._sidecar.put("spectra", _name(key), matrix.spectrum)

    def factor(self, key: Key, matrix: Matrix | None = None) -> Matrix:
        """The matrix's Gram factor as a Matrix, kept, or made (of `matrix`, where that is at hand)."""
        source = matrix if matrix is not None else self.matrix(key)
        found = self._sidecar.get("factors", _name(key))
        if found is None:
            found = gram_factor(source)
            self._sidecar.put("factors", _name(key), found)
        return Matrix(found, p=source.p, dtype=source.dtype)

    @property
    def sidecar(self) -> Sidecar:
        return self._sidecar


def _name(key: Key) -> str:
    return canonical_json(list(key))
