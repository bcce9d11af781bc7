"""The `pico` command: exit statuses and the shape of its messages."""

import json
from pathlib import Path

import pytest
from lab_project import make_project
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


def test_outside_a_project_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = pico("status")
    assert result.exit_code == 1
    assert "not a Pico project" in result.output


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
