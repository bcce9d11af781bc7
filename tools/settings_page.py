"""Writes docs/settings.md from the classes and docstrings of pico/config. A test keeps the two equal."""

from collections.abc import Iterable, Iterator
from inspect import cleandoc
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pico.config import Params, section_of
from pico.optimizers import OPTIMIZERS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
LIMITS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def page() -> str:
    """Returns the whole page."""
    lines = [
        "# Settings",
        "",
        "Every key of `params.yaml`, made from the docstrings of `pico/config/` by `tools/settings_page.py`.",
        "`params.yaml` is composed from `conf/`: `pico scale laptop` for plain `dvc repro`, or",
        "`dvc exp run -S scale=smoke -S optimizer.lr=0.001`. An unknown or mistyped key stops every stage, with the",
        "nearest right one named, and so does a missing one, unless it may be null; `pico params` checks the file.",
    ]
    for name, field in Params.model_fields.items():
        if name == "optimizer":
            lines += _optimizers()
            continue
        section = section_of(field.annotation)
        title = f"{name}.NAME" if get_origin(field.annotation) is dict else name
        lines += ["", f"## `{title}`", "", (section.__doc__ if section else field.description or "").strip()]
        if section:
            lines += ["", "| key | type | meaning |", "|---|---|---|", *_rows(section, "")]
    return "\n".join(lines) + "\n"


def _optimizers() -> list[str]:
    """Returns a table for each optimizer that `optimizer.name` may name."""
    lines = ["", "## `optimizer`", "", "`name` says which; each has keys of its own."]
    for name, kind in OPTIMIZERS.items():
        lines += ["", f"### `{name}`", "", cleandoc(kind.__doc__ or ""), ""]
        lines += ["| key | type | meaning |", "|---|---|---|", *_rows(kind, "")]
    return lines


def _rows(section: Any, prefix: str) -> Iterator[str]:
    """Yields a table row a key, nested sections included."""
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        key = f"{prefix}{name}" + ("[]" if inner and get_origin(field.annotation) is list else "")
        kind = _type_name(field.annotation) + _limits(field.metadata)
        meaning = (field.description or inner.__doc__).replace("\n", " ").strip()
        yield f"| `{key}` | {kind} | {meaning} |"
        if inner:
            yield from _rows(inner, f"{key}.")


def _type_name(annotation: Any) -> str:
    """Returns `int`, `list of str`, `a or b`: short and readable."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0]) + _limits(arguments[1].metadata)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(map(_type_name, arguments))
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"{_type_name(arguments[0])} to {_type_name(arguments[1])}"
    if section_of(annotation):
        return "section"
    return "null" if annotation is NoneType else annotation.__name__


def _limits(metadata: Iterable[Any]) -> str:
    """Returns the limits of a number, such as ` ≥ 0, ≤ 1`; nothing without any."""
    found = [f" {sign} {getattr(one, name)}" for one in metadata for name, sign in LIMITS.items() if hasattr(one, name)]
    return ",".join(found)


if __name__ == "__main__":
    PAGE.write_text(page())
