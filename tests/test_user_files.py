"""Files of a user's own add to any registry, replace what they added before, and are named where they are wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pico.errors import PicoError
from pico.plugins import Registry, UserFile, load_user_files, named, read_user_files

COLOURS: dict[str, Callable[[], str]] = {}
SHAPES: dict[str, "Shape"] = {}
HEADER = "from test_user_files import colour, shape\n\n\n"


@dataclass(frozen=True)
class Shape:
    """An entry that holds its function."""

    function: Callable[[], int]


def colour(function: Callable[[], str]) -> Callable[[], str]:
    COLOURS[function.__name__] = function
    return function


def shape(function: Callable[[], int]) -> Callable[[], int]:
    SHAPES[function.__name__] = Shape(function)
    return function


def guarded(function: Callable[[], str], file: UserFile) -> Callable[[], str]:
    def call() -> str:
        with named(file):
            return function()

    return call


COLOUR, SHAPE = Registry("colour", COLOURS, guarded), Registry("shape", SHAPES)


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pico.plugins._loaded", {})
    COLOURS.clear()
    SHAPES.clear()
    colour(red)
    shape(square)


def red() -> str:
    return "red"


def square() -> int:
    return 4


def file(text: str, path: str = "mine.py") -> UserFile:
    return UserFile(path, HEADER + text)


def test_a_file_adds_to_each_registry_and_says_what() -> None:
    text = "@colour\ndef green():\n    return 'green'\n\n\n@shape\ndef triangle():\n    return 3\n"
    added = load_user_files([file(text), file("@colour\ndef blue():\n    return 'blue'\n", "other.py")], COLOUR, SHAPE)
    assert added == (("green", "blue"), ("triangle",))
    assert COLOURS["green"]() == "green"
    assert SHAPES["triangle"].function() == 3


def test_the_same_text_is_imported_once_and_another_replaces_it() -> None:
    first = file("@colour\ndef green():\n    return 'green'\n")
    load_user_files([first], COLOUR)
    entry = COLOURS["green"]
    assert load_user_files([first], COLOUR) == (("green",),)
    assert COLOURS["green"] is entry
    load_user_files([file("@colour\ndef blue():\n    return 'blue'\n")], COLOUR)
    assert sorted(COLOURS) == ["blue", "red"]


def test_a_file_serves_owners_that_do_not_know_each_other() -> None:
    both = file("@colour\ndef green():\n    return 'green'\n\n\n@shape\ndef triangle():\n    return 3\n")
    assert load_user_files([both], COLOUR) == (("green",),)
    assert load_user_files([both], SHAPE) == (("triangle",),)
    assert load_user_files([both], COLOUR) == (("green",),)
    load_user_files([file("")], SHAPE)
    assert (sorted(COLOURS), sorted(SHAPES)) == (["red"], ["square"])


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("@colour\ndef red():\n    return 'scarlet'\n", "a colour named 'red' is registered already", 4),
        ("@colour\ndef green():\n    return 'green'\n\n\n@shape\ndef square():\n    return 5\n", "a shape named", 9),
        ("@colour\ndef green():\n    return 'green'\n\n\n1 / 0\n", "ZeroDivisionError", 9),
        ("def green(:\n", "not valid Python", 4),
    ],
)
def test_a_file_that_is_refused_leaves_the_registries_as_they_were(text: str, message: str, line: int) -> None:
    before = dict(COLOURS), dict(SHAPES)
    with pytest.raises(PicoError, match=message) as caught:
        load_user_files([file(text)], COLOUR, SHAPE)
    assert caught.value.where == f"mine.py, line {line}"
    assert before == (COLOURS, SHAPES)


def test_errors_at_use_name_the_line_and_the_page() -> None:
    load_user_files([UserFile("mine.py", f"{HEADER}@colour\ndef green():\n    return 1 / 0\n", "docs/x.md")], COLOUR)
    with pytest.raises(PicoError, match="ZeroDivisionError") as caught:
        COLOURS["green"]()
    assert (caught.value.where, "docs/x.md" in caught.value.mend) == ("mine.py, line 6", True)


def test_paths_are_checked_and_messages_name_the_setting(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_bytes(b"# \xff")
    for paths, message in (
        (["nowhere.py"], r"nowhere\.py cannot be read"),
        ([str(tmp_path / "mine.py")], "absolute"),
        (["mine.py"], "not UTF-8"),
        (["mine.py", "mine.py"], "named twice"),
    ):
        with pytest.raises(PicoError, match=message) as caught:
            read_user_files(paths, tmp_path, setting="some.files", page="docs/x.md")
        assert caught.value.where == "some.files"
