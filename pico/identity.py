"""Answers one question for every result: which code of this project, and which libraries, make it?

The code is found by following imports from an entry point, without running anything: `flows.prepare` for a stage,
`pico.train.loop` for a training run. Working folders, kept results and the test of dvc.yaml all ask here, so that they
agree: what an entry point can import is part of its results' identity, and nothing else is.
"""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import NamedTuple

from ruamel.yaml import YAML

from pico.errors import PicoError
from pico.files import sha256_file

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ("pico", "flows")
"""The project's top-level packages, below ROOT."""

INFRASTRUCTURE = (
    "flows.lab",
    "flows.stage",
    "pico.cli",
    "pico.config",
    "pico.errors",
    "pico.files",
    "pico.identity",
    "pico.plugins",
    "pico.spread",
    "pico.watch",
)
"""Modules and packages that move bytes, processes, settings and messages about. No result is a function of them: the
settings themselves are named by each stage as params."""

NOT_SCIENCE = frozenset(
    {"dvc", "hydra", "omegaconf", "prefect", "psutil", "pydantic", "ray", "rich", "ruamel", "typer"}
)
"""Libraries that schedule, show or parse. A change of their version is no reason to make a result anew."""


class Imports(NamedTuple):
    """The imports of one file, anywhere in it, except for type checkers."""

    modules: frozenset[str]
    """Modules of this project, by dotted name."""
    libraries: frozenset[str]
    """Top-level names of other packages; the standard library is left out."""


@cache
def module_file(module: str) -> Path | None:
    """Returns the file of one of the project's modules, or None for any other name."""
    if module.split(".")[0] not in PROJECT:
        return None
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@cache
def imports(module: str) -> Imports:
    """Returns what a module of this project imports. Raises ValueError where there is no such module."""
    path = module_file(module)
    if path is None:
        raise ValueError(f"{module} is no module of this project")
    names: set[str] = set()
    for node in _run_time_nodes(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            # `from package import module, function`: the package's own file has a part in it too.
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if module_file(name) else node.module for name in inner}
    ours = {name for name in names if module_file(name)}
    others = {name.split(".")[0] for name in names} - set(PROJECT) - sys.stdlib_module_names
    return Imports(frozenset(ours), frozenset(others))


def _run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields all nodes but those below `if TYPE_CHECKING:`, which never run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from _run_time_nodes(ast.Module(node.orelse, []))
        else:
            yield node
            yield from _run_time_nodes(node)


@cache
def closure(*entries: str) -> tuple[str, ...]:
    """Returns the project's modules that running `entries` can import, themselves among them, by name.

    Imports within functions count, and so do the packages that a module lies in; INFRASTRUCTURE does not, nor what only
    that imports.
    """
    found: set[str] = set()
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        if module in found or any(module == name or module.startswith(f"{name}.") for name in INFRASTRUCTURE):
            continue
        found.add(module)
        waiting += imports(module).modules
        if "." in module:
            waiting.append(module.rpartition(".")[0])
    return tuple(sorted(found))


@cache
def files(*entries: str) -> tuple[Path, ...]:
    """Returns the files of `closure`, and the data files beside them, such as templates. Empty ones are left out.

    A data file belongs to a module where it lies in the module's folder, or in a folder below that is no package.
    """
    found: set[Path] = set()
    for module in closure(*entries):
        path = module_file(module)
        assert path is not None
        found.add(path)
        if path.parent.name not in PROJECT:
            found.update(_data_files(path.parent))
    return tuple(sorted(path for path in found if path.stat().st_size))


def _data_files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            if path.name != "__pycache__" and not (path / "__init__.py").exists():
                yield from _data_files(path)
        elif path.suffix not in (".py", ".pyc"):
            yield path


@cache
def code(*entries: str) -> dict[str, str]:
    """Returns the sha256 of each of `files`, by its path from the project's root."""
    return {path.relative_to(ROOT).as_posix(): sha256_file(path) for path in files(*entries)}


_distributions = cache(packages_distributions)


@cache
def library_names(*entries: str) -> tuple[str, ...]:
    """Returns the libraries that `closure` imports, by the names they are installed under; see NOT_SCIENCE."""
    names = {name for module in closure(*entries) for name in imports(module).libraries} - NOT_SCIENCE
    # Such as `lm-eval` for `lm_eval`.
    return tuple(sorted({min(_distributions().get(name, [name])).lower().replace("_", "-") for name in names}))


@cache
def libraries(*entries: str) -> dict[str, str]:
    """Returns the installed version of each of `library_names`.

    A library that is not installed has the version "none": what needs it could not have run.
    """
    return {name: installed_version(name) or "none" for name in library_names(*entries)}


def installed_version(name: str) -> str | None:
    """Returns the version of a library with its local part, such as "2.13.0+cpu"; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def require_pinned(path: Path) -> None:
    """Raises PicoError where a library is installed in another version than dvc.lock would name.

    path: libraries.yaml, the pinned versions by name. Local parts, such as "+cpu", are not compared; what is not
    installed is not either, since what needs it says so.
    """
    try:
        pinned = YAML(typ="safe").load(path)
    except FileNotFoundError:
        raise PicoError(f"{path} does not exist", mend=f"restore it: git checkout {path}") from None
    wrong = [
        f"{name} {found} is installed, {wanted} is pinned"
        for name, wanted in pinned.items()
        if (found := installed_version(name)) and found.partition("+")[0] != wanted
    ]
    if wrong:
        raise PicoError(
            "results would be recorded as made by other libraries than they are:\n"
            + "\n".join(f"  - {line}" for line in wrong),
            where=str(path),
            mend="install what is pinned: make install; or write down what is meant in requirements.lock, then: "
            "python tools/libraries.py",
        )


@cache
def identity(*entries: str) -> dict[str, dict[str, str]]:
    """Returns `code` and `libraries` of `entries`, and Python's release: what makes a result, besides its inputs."""
    python = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    return {"code": code(*entries), "libraries": libraries(*entries) | python}


def device_name(device: str) -> str:
    """Returns "cpu", or the name of the GPU that "cuda" is, for keys: what one device computed is not another's."""
    if device == "cpu":
        return device
    import torch

    return f"{device} {torch.cuda.get_device_name(device)}"
