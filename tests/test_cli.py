"""The `pico` command: exit statuses and the shape of its messages."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lab_project import REPOSITORY, make_project
from synthetic_runs import write_run
from typer.testing import CliRunner, Result

from pico.analysis.engine.table import read_table
from pico.cli import app


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that is the current folder."""
    root = make_project(tmp_path / "project")
    monkeypatch.chdir(root)
    return root


def pico(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_scale_switches_params_and_params_shows_them(inside: Path) -> None:
    assert pico("scale", "smoke", "optimizer.lr=0.01").exit_code == 0
    assert pico("params", "suite.scale").output == "smoke\n"
    assert "lr: 0.01" in pico("params", "optimizer").output


def test_a_refused_scale_leaves_params_as_they_were(inside: Path) -> None:
    before = (inside / "params.yaml").read_bytes()
    result = pico("scale", "smoke", "optimizer.lr=fast")
    assert result.exit_code == 1
    assert result.output.startswith("pico: ")
    assert "optimizer.lr = 'fast'" in result.output
    assert (inside / "params.yaml").read_bytes() == before


def test_it_works_from_a_folder_below(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inside / "conf")
    assert pico("params", "seed").output == "42\n"


def test_a_mistyped_setting_is_named_with_the_nearest(inside: Path) -> None:
    path = inside / "params.yaml"
    path.write_text(path.read_text().replace("weight_decay", "wieght_decay"))
    result = pico("params")
    assert result.exit_code == 1
    assert "did you mean optimizer.weight_decay?" in result.output


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip has installed the wheel, built from the files of this checkout."""
    root = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, root)
    for name in ("pico", "flows"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for command in (["wheel", "--no-build-isolation", "-w", "dist", "."], ["install", "--target", "installed"]):
        done = subprocess.run(
            [sys.executable, "-m", "pip", "-q", *command, "--no-deps", *map(str, (root / "dist").glob("*.whl"))],
            cwd=root, env={**os.environ, "PIP_NO_INDEX": "1"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return root / "installed"


def run_installed(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the `pico` that the wheel has installed, in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run([installed / "bin" / "pico", *arguments], cwd=folder, env=environment,
                          capture_output=True, text=True)  # fmt: skip


def test_the_wheel_holds_all_of_pico_and_nothing_else(installed: Path) -> None:
    def files(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    assert files(installed / "pico") == files(installed.parent / "pico")
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {"pico", "bin"}


def test_the_wheel_works_without_a_clone_and_says_what_needs_one(installed: Path, tmp_path: Path) -> None:
    assert "capture" in run_installed(installed, tmp_path, "--help").stdout
    assert "cka" in run_installed(installed, tmp_path, "metrics").stdout
    for command in (
        ["up"],
        ["down"],
        ["status"],
        ["ui"],
        ["scale", "smoke"],
        ["params"],
        ["plan"],
        ["data", "find", "x"],
    ):
        refused = run_installed(installed, tmp_path, *command)
        assert refused.returncode == 1, command
        assert refused.stderr.startswith("pico: this is not a clone of Pico's repository")
        assert "git clone" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert not list(tmp_path.iterdir())


def test_in_a_clone_the_installed_command_takes_the_clones_flows(installed: Path, tmp_path: Path) -> None:
    """Not those of another package of that name."""
    root = make_project(tmp_path / "clone")
    shutil.copytree(REPOSITORY / "flows", root / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    stranger = shutil.copytree(installed, tmp_path / "installed")
    (stranger / "flows").mkdir()
    (stranger / "flows" / "__init__.py").write_text("raise RuntimeError('another package called flows')")
    status = run_installed(stranger, root / "conf", "status")
    assert (status.returncode, status.stderr) == (3, "")
    assert "Prefect UI" in status.stdout


def test_status_tells_by_its_exit_status_whether_the_lab_is_up(inside: Path) -> None:
    assert pico("status").exit_code == 3
    assert pico("status", "--quiet").output == ""


def test_ui_without_a_lab_says_how_to_start_it(inside: Path) -> None:
    result = pico("ui")
    assert result.exit_code == 1
    assert "pico up" in result.output


def test_metrics_are_listed_for_people_and_for_programs() -> None:
    from pico.analysis.metrics.catalogue import METRICS

    listed = json.loads(pico("metrics", "--json").output)
    assert {row["name"] for row in listed} == set(METRICS)
    assert all(row["definition"] and row["source"] and row["applies_to"] and row["inputs"] for row in listed)
    table = pico("metrics").output
    assert all(name in table for name in METRICS)


def test_a_metric_file_that_is_wrong_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import numpy\n\n1 / 0\n")
    result = pico("metrics", "--file", str(tmp_path / "mine.py"))
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.output
    assert "line 3" in result.output


def test_analyze_works_outside_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "tiny", steps=(0, 1))
    monkeypatch.chdir(tmp_path)
    result = pico("analyze", "tiny", "--metrics", "per,gini", "--components", "simple", "--layers", "0")
    first, second = result.output.splitlines()
    assert first == "analyzed/tiny holds 60 values of 2 checkpoints of tiny"
    figures = sorted(path.stem for path in (tmp_path / "analyzed/tiny/figures").glob("*.svg"))
    assert (
        second == f"{len(figures)} figures are in analyzed/tiny/figures; analyzed/tiny/explorer.html shows every value"
    )
    assert figures == sorted(path.stem for path in (tmp_path / "analyzed/tiny/figures").glob("*.png"))
    assert "heat-per-simple" in figures
    found = read_table(tmp_path / "analyzed" / "tiny").to_pylist()
    assert {(row["metric"], row["component"], row["layer"]) for row in found} == {
        ("per", "simple", 0),
        ("gini", "simple", 0),
    }
    mistyped = pico("analyze", "tiny", "--metrics", "perr")
    assert mistyped.exit_code == 1
    assert "did you mean 'per'?" in mistyped.output
    assert "nothing does not exist" in pico("analyze", "nothing").output
