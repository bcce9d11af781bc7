"""A user's own Python files, which add entries to the project's registries: metrics, components, readers of corpora.

A file is read once, in the driver. Its text travels with every task, so that a worker on another machine needs no copy
of it and all processes run the same code. Its sha256 is part of the identity of every result that it has a part in.

A registry is a plain dict of name -> object that a decorator fills. Whoever owns one describes it by a `Registry` and
loads files into it by `load_user_files`.
"""

import inspect
import linecache
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pico.errors import PicoError


@dataclass(frozen=True)
class UserFile:
    """The text of a user's file. Plain values, so that it can be sent to any worker."""

    path: str
    """As the settings name it; used in messages and tracebacks."""
    text: str
    page: str = "CONTRIBUTING.md"
    """The page that shows how such a file is written, for messages."""

    @property
    def sha256(self) -> str:
        """The hash of the text, for identities."""
        return sha256(self.text.encode()).hexdigest()

    @property
    def module_name(self) -> str:
        """The private name that the file is imported under. It follows the text: an edited file is another module."""
        return f"_pico_user_{self.sha256[:16]}"


def read_user_files(paths: Sequence[str], root: Path = Path(), *, setting: str, page: str) -> tuple[UserFile, ...]:
    """Reads the files that a setting names, such as `analysis.files`; `paths` are relative to `root`, the project.

    page: see UserFile. Raises PicoError for a path that is absolute or named twice, and for a file that is missing or
    not UTF-8.
    """
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise PicoError(f"{path} is named twice", where=setting, mend="name every file once")
        if Path(path).is_absolute():
            raise PicoError(f"{path} is an absolute path", where=setting, mend="name it from the project")
    return tuple(read_user_file(root / path, name=path, where=setting, page=page) for path in paths)


def read_user_file(path: Path, *, name: str | None = None, where: str = "", page: str = UserFile.page) -> UserFile:
    """Reads one file, which messages call `name`. Raises PicoError where it is missing or not UTF-8."""
    name = name or str(path)
    try:
        return UserFile(name, path.read_text(encoding="utf-8"), page)
    except OSError as error:
        raise PicoError(f"{name} cannot be read: {error.strerror}", where=where, mend="correct the path") from None
    except UnicodeDecodeError as error:
        raise PicoError(f"{name} is not UTF-8: byte {error.start}", where=where, mend="save it as UTF-8") from None


def file_hashes(files: Sequence[UserFile]) -> dict[str, str]:
    """Returns path -> sha256, the part of a result's identity that user files make."""
    return {file.path: file.sha256 for file in files}


class Registry(NamedTuple):
    """A dict of name -> object that user files may add to. An object is a function, or has one as `function`."""

    kind: str
    """For messages: `metric`."""
    entries: dict[str, Any]
    guard: Callable[[Any, UserFile], Any] = lambda entry, file: entry
    """Gives what stands in `entries` instead of an object that `file` added, for instance one whose errors are named
    by `named`."""


class _Loaded(NamedTuple):
    file: UserFile
    registries: tuple[Registry, ...]
    added: dict[str, tuple[str, ...]]
    """The names that the file added, by the kind of their registry."""


_loaded: dict[str, _Loaded] = {}
"""Path -> what this process loaded from it."""


def load_user_files(files: Sequence[UserFile], *registries: Registry) -> tuple[tuple[str, ...], ...]:
    """Imports the files, which add to the registries. Returns the added names, sorted in each file, by registry.

    Does nothing for a text that is loaded already; another text of the same path replaces the former. Raises PicoError
    naming file and line where a file cannot be imported or takes a name that is taken; the registries are then as
    before.
    """
    found = [_load(file, registries) for file in files]
    return tuple(tuple(name for added in found for name in added[registry.kind]) for registry in registries)


def _load(file: UserFile, registries: tuple[Registry, ...]) -> dict[str, tuple[str, ...]]:
    kinds = [registry.kind for registry in registries]
    loaded = _loaded.get(file.path)
    if loaded is not None:
        if loaded.file.text == file.text and all(kind in loaded.added for kind in kinds):
            return loaded.added
        # One file may add to several registries, whose owners do not know each other: it is then imported for all.
        registries += tuple(registry for registry in loaded.registries if registry.kind not in kinds)
        _unload(_loaded.pop(file.path), registries)
    before = {registry.kind: dict(registry.entries) for registry in registries}
    try:
        with named(file):
            _import(file)
        for registry in registries:
            _refuse_taken(file, registry, before[registry.kind])
    except BaseException:
        sys.modules.pop(file.module_name, None)
        for registry in registries:
            registry.entries.clear()
            registry.entries.update(before[registry.kind])
        raise
    added = {}
    for registry in registries:
        added[registry.kind] = tuple(sorted(registry.entries.keys() - before[registry.kind].keys()))
        for name in added[registry.kind]:
            registry.entries[name] = registry.guard(registry.entries[name], file)
    _loaded[file.path] = _Loaded(file, registries, added)
    return added


def _unload(loaded: _Loaded, registries: tuple[Registry, ...]) -> None:
    """Removes what a file added, also to registries that were not looked at when it was imported."""
    sys.modules.pop(loaded.file.module_name, None)
    for registry in loaded.registries:
        for name in loaded.added[registry.kind]:
            registry.entries.pop(name, None)
    for registry in registries:
        for name, entry in list(registry.entries.items()):
            if _function(entry).__module__ == loaded.file.module_name:
                del registry.entries[name]


def _refuse_taken(file: UserFile, registry: Registry, before: dict[str, Any]) -> None:
    """Raises PicoError where the file replaced an entry; a decorator may refuse that itself."""
    for name, former in before.items():
        if registry.entries.get(name) is not former:
            where = f"{file.path}, line {line_of(registry.entries[name])}"
            raise PicoError(f"a {registry.kind} named {name!r} is registered already", where=where, mend="rename it")


def line_of(entry: Any) -> int:
    """Returns the line at which an entry of a registry is defined in its file."""
    return _function(entry).__code__.co_firstlineno


def _function(entry: Any) -> Any:
    return inspect.unwrap(getattr(entry, "function", entry))


def _import(file: UserFile) -> None:
    """Runs the text as a module. Nothing is written beside the user's file."""
    module = ModuleType(file.module_name)
    module.__file__ = os.path.abspath(file.path)
    sys.modules[file.module_name] = module  # dataclasses and pickle look a module up by its name
    # tracebacks show lines of the text, also where the file is not
    linecache.cache[file.path] = (len(file.text), None, file.text.splitlines(keepends=True), file.path)
    exec(compile(file.text.encode(), file.path, "exec", dont_inherit=True), vars(module))


@contextmanager
def named(file: UserFile, line: int | None = None, *, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turns what the file's code raises into a PicoError with its line (or `line`, where the traceback has none).

    PicoError and the exceptions `passing` are let through.
    """
    mend = f"correct the file; {file.page} shows how it is written"
    passing = (PicoError, *passing)
    try:
        yield
    except passing:
        raise
    except SyntaxError as error:
        where = f"{file.path}, line {error.lineno}" if error.filename == file.path else str(error.filename)
        raise PicoError(f"{file.path} is not valid Python: {error.msg}", where=where, mend=mend) from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file.path]
        last = lines[-1] if lines else line
        where = file.path if last is None else f"{file.path}, line {last}"
        raise PicoError(f"{file.path} failed: {type(error).__name__}: {error}", where=where, mend=mend) from error
