"""The user's own metrics and components: Python files named in the settings, loaded alike in the driver and in workers.

A file is read once, in the driver; its text travels with every task, so that a worker on another machine needs no copy
of it and all run the very same code. Its sha256 is part of the analysis' identity.
"""

import functools
import importlib.abc
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from numbers import Real
from pathlib import Path
from typing import Any

from pico.analysis.engine.components import COMPONENTS, OF_THE_MODEL, Part, State
from pico.analysis.metrics.registry import METRICS, STATUSES, Undefined
from pico.errors import PicoError

MEND = "correct the file; docs/custom-metrics.md shows how a metric and a component are written"


@dataclass(frozen=True)
class MetricFile:
    """A file of metrics and components. Plain values, so that it travels to any worker."""

    path: str
    """As the settings name it; for messages and tracebacks."""
    text: str

    @property
    def sha256(self) -> str:
        """Of the text: what the analysis' identity holds."""
        return sha256(self.text.encode()).hexdigest()

    @property
    def module_name(self) -> str:
        """The private name under which it is imported; of the text, so that an edited file is another module."""
        return f"_pico_metrics_{self.sha256[:16]}"


@dataclass(frozen=True)
class Registered:
    """What one file added."""

    metrics: tuple[str, ...]
    components: tuple[str, ...]


_loaded: dict[str, tuple[str, Registered]] = {}
"""Path -> (module name, what it added), of this process."""


def read_metric_files(paths: Sequence[str], root: Path = Path()) -> tuple[MetricFile, ...]:
    """Reads the files of setting `analysis.files`; `paths` are relative to `root`, the project's folder.

    Raises PicoError for a path that is absolute or named twice, and for a file that is missing or not UTF-8.
    """
    files: list[MetricFile] = []
    for path in paths:
        if path in {one.path for one in files}:
            raise PicoError(f"{path} is named twice", where="analysis.files", mend="name every file once")
        if Path(path).is_absolute():
            raise PicoError(f"{path} is an absolute path", where="analysis.files", mend="name it from the project")
        files.append(read_metric_file(root / path, name=path))
    return tuple(files)


def read_metric_file(path: Path, name: str | None = None) -> MetricFile:
    """Reads one file; `name`: what messages call it. Raises PicoError where it is missing or not UTF-8."""
    name = name or str(path)
    try:
        return MetricFile(name, path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PicoError(
            f"{name} cannot be read: {error.strerror}", where="analysis.files", mend="correct the path"
        ) from None
    except UnicodeDecodeError as error:
        raise PicoError(
            f"{name} is not UTF-8: byte {error.start}", where="analysis.files", mend="save it as UTF-8"
        ) from None


def files_identity(files: Sequence[MetricFile]) -> dict[str, str]:
    """Path -> sha256: the part of an analysis' identity that files make."""
    return {one.path: one.sha256 for one in files}


def load_metric_files(files: Sequence[MetricFile]) -> Registered:
    """Imports the files, which registers their metrics and components; gives the names of all that they add.

    Calling it again with the same text does nothing; with another text of the same path, that replaces the former.
    Raises PicoError naming file and line where a file cannot be imported, or registers a name that is taken. Errors
    that a metric or component raises later, while it measures, are PicoErrors that name file and line, too.
    """
    added = [_load(one) for one in files]
    return Registered(
        tuple(name for one in added for name in one.metrics), tuple(name for one in added for name in one.components)
    )


def _load(file: MetricFile) -> Registered:
    loaded = _loaded.get(file.path)
    if loaded and loaded[0] == file.module_name:
        return loaded[1]
    if loaded:
        _unload(file.path)
    metrics, components = dict(METRICS), dict(COMPONENTS)
    try:
        with _named(file.path):
            _import(file)
        _refuse_taken(file, COMPONENTS, components, "component")
    except BaseException:
        sys.modules.pop(file.module_name, None)
        _restore(METRICS, metrics)
        _restore(COMPONENTS, components)
        OF_THE_MODEL.intersection_update(components)
        raise
    registered = Registered(
        tuple(sorted(METRICS.keys() - metrics.keys())), tuple(sorted(COMPONENTS.keys() - components.keys()))
    )
    for name in registered.metrics:
        METRICS[name] = replace(METRICS[name], function=_guarded_metric(METRICS[name].function, file.path))
    for name in registered.components:
        COMPONENTS[name] = _guarded_component(COMPONENTS[name], file.path)
    _loaded[file.path] = file.module_name, registered
    return registered


class _Loader(importlib.abc.SourceLoader):
    """Imports a text that is in memory. Nothing is written beside the user's file."""

    def __init__(self, file: MetricFile) -> None:
        self.file = file

    def get_filename(self, fullname: str) -> str:
        return self.file.path

    def get_data(self, path: Any) -> bytes:
        if path != self.file.path:
            raise OSError(f"{path} is not kept")  # of compiled code: importlib then compiles the text
        return self.file.text.encode()


def _import(file: MetricFile) -> None:
    spec = importlib.util.spec_from_file_location(file.module_name, file.path, loader=_Loader(file))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.module_name] = module  # dataclasses and pickle look a module up by its name
    spec.loader.exec_module(module)


def _unload(path: str) -> None:
    module_name, registered = _loaded.pop(path)
    sys.modules.pop(module_name, None)
    for name in registered.metrics:
        METRICS.pop(name, None)
    for name in registered.components:
        COMPONENTS.pop(name, None)
        OF_THE_MODEL.discard(name)


def _refuse_taken(file: MetricFile, register: dict[str, Any], before: dict[str, Any], kind: str) -> None:
    """The decorator of metrics looks for itself; for components the later one would win in silence."""
    for name, found in before.items():
        if register[name] is not found:
            line = register[name].__code__.co_firstlineno
            raise PicoError(
                f"a {kind} named {name!r} is registered already", where=f"{file.path}, line {line}", mend="rename it"
            )


def _restore(register: dict[str, Any], before: dict[str, Any]) -> None:
    register.clear()
    register.update(before)


@contextmanager
def _named(path: str, line: int | None = None) -> Iterator[None]:
    """Turns whatever the file's code raises into a PicoError that names its line (or `line`, where none is known)."""
    try:
        yield
    except (PicoError, Undefined):
        raise
    except SyntaxError as error:
        where = f"{path}, line {error.lineno}" if error.filename == path else str(error.filename)
        raise PicoError(f"{path} is not valid Python: {error.msg}", where=where, mend=MEND) from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        last = lines[-1] if lines else line
        where = path if last is None else f"{path}, line {last}"
        raise PicoError(f"{path} failed: {type(error).__name__}: {error}", where=where, mend=MEND) from error


def _guarded_metric(function: Callable[..., Any], path: str) -> Callable[..., Any]:
    name, line = function.__name__, function.__code__.co_firstlineno

    @functools.wraps(function)
    def guarded(*operands: Any, **parameters: Any) -> Any:
        with _named(path, line):
            result = function(*operands, **parameters)
            value, status = result if isinstance(result, tuple) else (result, "ok")
            if not isinstance(value, Real) or status not in STATUSES:
                raise TypeError(
                    f"metric {name!r} gave {result!r}, not a float or (float, one of {', '.join(STATUSES)})"
                )
            return result

    return guarded


def _guarded_component(function: Callable[[State], Iterator[Part]], path: str) -> Callable[[State], Iterator[Part]]:
    def guarded_make(make: Callable[[], Any]) -> Callable[[], Any]:
        def guarded() -> Any:
            with _named(path):
                return make()

        return guarded

    @functools.wraps(function)
    def guarded(state: State) -> Iterator[Part]:
        with _named(path):
            for key, make in function(state):
                yield key, guarded_make(make)

    return guarded
