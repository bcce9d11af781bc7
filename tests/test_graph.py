"""dvc.yaml tells the truth: each stage lists the code that it runs, and imports point one way."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
# What outs are not a function of: settings are listed as params, and the rest moves bytes or processes about.
INFRASTRUCTURE = {"pico.config", "pico.errors", "pico.files", "pico.spread"}
# Higher may import lower, never the other way; packages of one layer do not know each other.
LAYERS = [
    {"pico.errors"},
    {"pico.files", "pico.config", "pico.spread"},
    {"pico.config"},
    {"pico.checkpoint"},
    {"pico.model", "pico.data"},
    {"pico.train", "pico.analysis", "pico.evaluation", "pico.export"},
    {"pico.behaviour", "pico.capture"},
    {"pico.report", "pico.plan"},
]


def module_file(module: str) -> Path | None:
    """The file of a first-party module, or None."""
    base = ROOT / Path(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def imports(path: Path) -> set[str]:
    """First-party modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("pico", "flows") and module_file(name)}


def reached(module: str) -> set[str]:
    """All first-party modules that running `module` can import."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        waiting += imports(module_file(current))
        waiting += [parent for parent in (current.rpartition(".")[0],) if parent and module_file(parent)]
    return seen


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_it_runs(stage):
    entry = f"flows.{STAGES[stage]['cmd'].split()[3]}"
    listed = [dep for dep in STAGES[stage]["deps"] if "$" not in dep and not dep.startswith(("data/", "reports/"))]
    code = {entry} | {
        module
        for module in reached(entry)
        if module.startswith("pico.") and ".".join(module.split(".")[:2]) not in INFRASTRUCTURE
    }
    for module in sorted(code):
        file = str(module_file(module).relative_to(ROOT))
        if (ROOT / file).stat().st_size == 0:
            continue
        covered = any(file == dep or file.startswith(f"{dep}/") for dep in listed)
        assert covered, f"{stage} runs {file}, but dvc.yaml does not list it among its deps"
    for dep in listed:
        assert (ROOT / dep).exists(), f"{stage} lists {dep}, which does not exist"


@pytest.mark.parametrize("path", sorted((ROOT / "pico").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts[:2])
    if module in ("pico.__init__", "pico.cli"):
        return
    level = next(index for index, layer in enumerate(LAYERS) if module in layer)
    for name in imports(path):
        target = ".".join(name.split(".")[:2])
        if target in (module, "pico"):
            continue
        assert any(target in layer for layer in LAYERS[:level]), f"{path.name} of {module} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "pico").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_knows_neither_prefect_nor_dvc(path):
    if path.is_relative_to(ROOT / "pico" / "cli"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & {"prefect", "dvc"}


def test_the_base_model_is_read_in_one_sitting():
    assert len((ROOT / "pico" / "model" / "decoder.py").read_text().splitlines()) < 500
