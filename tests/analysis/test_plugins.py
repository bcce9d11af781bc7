"""The user's own metrics and components: the page's example works, and every mistake is named with its line."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import write_run

from pico.analysis import METRICS, compute, read_table
from pico.analysis.engine.components import COMPONENTS
from pico.analysis.engine.plugins import load_metric_files, read_metric_files
from pico.analysis.engine.run import analyze_run
from pico.errors import PicoError
from pico.plugins import file_hashes

PAGE = Path(__file__).resolve().parents[2] / "docs" / "custom-metrics.md"
HEADER = "from pico.analysis.metrics.registry import metric\n\n\n"
METRIC = '@metric(definition="d", source="s", types="W")\ndef {name}(x):\n    return {value}\n'


@pytest.fixture(autouse=True)
def registers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test registers is gone after it."""
    before = dict(METRICS), dict(COMPONENTS)
    monkeypatch.setattr("pico.plugins._loaded", {})
    yield
    for register, former in zip((METRICS, COMPONENTS), before, strict=True):
        register.clear()
        register.update(former)


def load(folder: Path, text: str, name: str = "mine.py"):
    (folder / name).write_text(text)
    return load_metric_files(read_metric_files([name], folder))


@pytest.fixture
def page_file(tmp_path: Path) -> Path:
    """The file that docs/custom-metrics.md shows: its metrics and its component."""
    blocks = [text for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "@" in text]
    (tmp_path / "my_metrics.py").write_text("\n\n".join(blocks))
    return tmp_path


def test_the_pages_example_measures_a_run(page_file: Path) -> None:
    added = load_metric_files(read_metric_files(["my_metrics.py"], page_file))
    assert (added.metrics, added.components) == (("drift", "top_share"), ("keys",))
    assert compute("top_share", np.diag([3.0, 1.0, 1.0, 1.0]), k=1).value == pytest.approx(0.75)
    assert compute("top_share", np.zeros((3, 2))).status == "zero"
    rows = np.eye(4, 6)
    assert compute("drift", rows, rows[:, ::-1]).value == pytest.approx(1)
    run, folder = page_file / "run", page_file / "table"
    folder.mkdir()
    write_run(run, steps=(0, 1))
    analyze_run(run, "tiny", ["top_share", "drift"], ["simple", "keys"], folder)
    found = read_table(folder).to_pylist()
    last = [row["value"] for row in found if row["metric"] == "drift" and row["step"] == 1]
    assert last
    assert np.allclose(last, 0)
    heads = [row for row in found if row["component"] == "keys" and row["step"] == 1 and row["layer"] == 0]
    assert [(row["head"], row["n"], row["p"], row["params"]) for row in heads] == [
        (head, 4, 16, '{"k":4}') for head in (0, 1)
    ]
    assert all(row["value"] == pytest.approx(1) for row in heads)  # a head of width 4 has 4 directions


def test_loading_twice_does_nothing_and_an_edit_replaces(tmp_path: Path) -> None:
    load(tmp_path, HEADER + METRIC.format(name="mine", value="1.0"))
    first = METRICS["mine"]
    load(tmp_path, HEADER + METRIC.format(name="mine", value="1.0"))
    assert METRICS["mine"] is first
    load(tmp_path, HEADER + METRIC.format(name="mine", value="2.0") + "\n\n" + METRIC.format(name="other", value="3.0"))
    assert compute("mine", np.eye(2)).value == 2
    load(tmp_path, HEADER + METRIC.format(name="other", value="3.0"))
    assert "mine" not in METRICS


def test_the_text_travels_and_nothing_is_written_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(HEADER + METRIC.format(name="mine", value="1.0"))
    files = read_metric_files(["mine.py"], tmp_path)
    path.unlink()
    load_metric_files(files)  # as a worker does that has no copy of the file
    assert compute("mine", np.eye(2)).value == 1
    assert not list(tmp_path.iterdir())


def test_the_identity_is_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("a = 1\n")
    first = file_hashes(read_metric_files(["mine.py"], tmp_path))
    assert first == file_hashes(read_metric_files(["mine.py"], tmp_path))
    assert list(first) == ["mine.py"]
    (tmp_path / "mine.py").write_text("a = 2\n")
    assert first != file_hashes(read_metric_files(["mine.py"], tmp_path))


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("def broken(:\n", "not valid Python", 1),
        ("import numpy\n\nnumpy.nothing_of_the_sort\n", "nothing_of_the_sort", 3),
        ("import nothing_of_the_sort\n", "ModuleNotFoundError", 1),
        (HEADER + METRIC.format(name="per", value="1.0"), "'per' is registered already", 4),
        (HEADER + METRIC.format(name="mine", value="1.0").replace('"W"', '"Q"'), "KeyError", 4),
        (
            "from pico.analysis.engine.components import component\n\n\n@component\ndef simple(state):\n    yield\n",
            "a component named 'simple' is registered already",
            4,
        ),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named_and_leaves_nothing(
    text: str, message: str, line: int, tmp_path: Path
) -> None:
    before = dict(METRICS), dict(COMPONENTS)
    with pytest.raises(PicoError, match=message) as caught:
        load(tmp_path, text)
    assert caught.value.where == f"mine.py, line {line}"
    assert before == (METRICS, COMPONENTS)


def test_what_a_metric_raises_or_gives_wrongly_is_named(tmp_path: Path) -> None:
    text = HEADER + METRIC.format(name="mine", value="1 / 0") + "\n\n" + METRIC.format(name="other", value="None")
    load(tmp_path, text + "\n\n" + METRIC.format(name="third", value="float('nan')"))
    with pytest.raises(PicoError, match="ZeroDivisionError") as caught:
        compute("mine", np.eye(2))
    assert caught.value.where == "mine.py, line 6"
    with pytest.raises(PicoError, match="gave None, not a float") as caught:
        compute("other", np.eye(2))
    assert caught.value.where == "mine.py, line 9"
    assert compute("third", np.eye(2)).status == "nonfinite"
    assert math.isclose(compute("per", np.eye(2)).value, 1)


def test_what_a_component_raises_is_named(tmp_path: Path) -> None:
    load(
        tmp_path,
        "from pico.analysis.engine.components import Key, component\n\n\n@component\ndef mine(state):\n"
        '    yield Key("mine", "weights", None, None, None), lambda: state.weights["nothing"]\n',
    )
    write_run(tmp_path / "run", steps=(0,))
    (tmp_path / "table").mkdir()
    with pytest.raises(PicoError, match="KeyError: 'nothing'") as caught:
        analyze_run(tmp_path / "run", "tiny", ["per"], ["mine"], tmp_path / "table")
    assert caught.value.where == "mine.py, line 6"
