"""dvc.yaml tells the truth: each stage lists the code and the libraries that it runs, and imports point one way."""

import ast
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pico import identity
from pico.errors import PicoError

ROOT = Path(__file__).resolve().parent.parent
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in identity.PROJECT
    for path in (ROOT / package).rglob("*.py")
)
# Higher may import lower, never the other way; packages of one layer do not know each other.
LAYERS = [
    {"pico.errors"},
    {"pico.files", "pico.optimizers", "pico.spread", "pico.plugins"},
    {"pico.config", "pico.identity"},
    {"pico.checkpoint", "pico.expectations"},
    {"pico.model", "pico.data"},
    {"pico.flops"},
    {"pico.watch"},
    {"pico.train", "pico.analysis", "pico.evaluation", "pico.export"},
    {"pico.behaviour", "pico.capture"},
    {"pico.report", "pico.plan"},
]


def entry(stage: str) -> str:
    return f"flows.{STAGES[stage]['cmd'].split()[3]}"


def listed_code(stage: str) -> list[str]:
    """The deps of a stage that are code of this project."""
    return [dep for dep in STAGES[stage]["deps"] if dep.split("/")[0] in identity.PROJECT]


def run_code(stage: str) -> set[str]:
    """The files that a stage can run, but for the plumbing of flows/ that all share."""
    own = entry(stage).replace(".", "/") + ".py"
    paths = {path.relative_to(ROOT).as_posix() for path in identity.files(entry(stage))}
    return {path for path in paths if path.startswith("pico/") or path == own}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_the_code_it_runs(stage):
    listed = listed_code(stage)
    for file in sorted(run_code(stage)):
        covered = any(file == dep or file.startswith(f"{dep}/") for dep in listed)
        assert covered, f"{stage} runs {file}, but dvc.yaml does not list it among its deps"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_the_code_it_lists(stage):
    tracked = subprocess.run(
        ["git", "ls-files", *listed_code(stage)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for dep in listed_code(stage):
        assert (ROOT / dep).exists(), f"{stage} lists {dep}, which does not exist"
    run = run_code(stage)
    for file in tracked.stdout.split():
        if (ROOT / file).is_file() and (ROOT / file).stat().st_size:
            assert file in run, f"{stage} lists {file} among its deps in dvc.yaml, but never runs it"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_the_libraries_its_result_depends_on(stage):
    params = [
        one["libraries.yaml"] for one in STAGES[stage]["params"] if isinstance(one, dict) and "libraries.yaml" in one
    ]
    assert [sorted(names) for names in params] == [list(identity.library_names(entry(stage)))]


def test_libraries_are_those_of_the_lock():
    spec = importlib.util.spec_from_file_location("libraries", ROOT / "tools" / "libraries.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert (ROOT / "libraries.yaml").read_text() == tool.contents(), "run: python tools/libraries.py"


def test_another_version_than_the_pinned_one_is_refused_by_name(tmp_path):
    pinned = (ROOT / "libraries.yaml").read_text()
    identity.require_pinned(ROOT / "libraries.yaml")
    file = tmp_path / "libraries.yaml"
    with pytest.raises(PicoError, match="does not exist"):
        identity.require_pinned(file)
    file.write_text("a-package-that-is-not-there: 1.0.0\n")
    identity.require_pinned(file)
    file.write_text(re.sub("numpy: .*", "numpy: 1.0.0", pinned))
    with pytest.raises(PicoError, match=r"numpy \S+ is installed, 1\.0\.0 is pinned"):
        identity.require_pinned(file)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    package = ".".join(module.split(".")[:2])
    if package in ("pico", "pico.cli") or module.startswith("flows"):
        assert module.startswith(("flows", "pico.cli")) or not identity.imports(module).modules
        return
    level = next(index for index, layer in enumerate(LAYERS) if package in layer)
    for name in identity.imports(module).modules:
        target = ".".join(name.split(".")[:2])
        if target in (package, "pico"):
            continue
        assert any(target in layer for layer in LAYERS[:level]), f"{module} imports {name}"


def test_no_module_imports_itself_in_a_circle():
    """Imports within functions count; those for type checkers, and a package's of its own modules' parents, do not."""
    graph = {module: identity.imports(module).modules for module in MODULES}
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for name in sorted(graph[module] - {module}):
                visit(name, [*path, module])
            done.add(module)

    for module in MODULES:
        visit(module, [])


@pytest.mark.parametrize(
    "module", [module for module in MODULES if module.startswith("pico.") and ".cli" not in module]
)
def test_the_library_knows_neither_prefect_nor_dvc(module):
    assert not identity.imports(module).libraries & {"prefect", "dvc"}


def test_the_base_model_is_read_in_one_sitting():
    assert len((ROOT / "pico" / "model" / "decoder.py").read_text().splitlines()) < 500


def test_docstrings_say_what_is_done():
    """They begin with a verb or a noun, as in PyTorch's documentation, not with a question word or a preposition."""
    unclear = []
    for file in subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split():
        for node in ast.walk(ast.parse((ROOT / file).read_text())) if (ROOT / file).exists() else ():
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                first = node.value.value.strip().split(" ")[0]
                if first in ("Of", "What", "How", "Which", "Where", "By", "Whether", "Who", "When", "Why"):
                    unclear.append(f"{file}:{node.lineno}: {node.value.value.strip().splitlines()[0]}")
    assert not unclear, "\n".join(unclear)
