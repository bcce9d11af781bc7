"""Writes docs/settings.md from the docstrings of pico/config. A test keeps the two equal."""

from inspect import cleandoc
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pico.config import Params, section_of
from pico.optimizers import OPTIMIZERS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"


def page() -> str:
    """The whole page."""
    lines = [
        "# Settings",
        "",
        "Every key of `params.yaml`, made from the docstrings of `pico/config/` by `tools/settings_page.py`.",
        "`params.yaml` is composed from `conf/`: `pico scale laptop` for plain `dvc repro`, or",
        "`dvc exp run -S scale=smoke -S optimizer.lr=0.001`. An unknown or mistyped key stops every stage, with the",
        "nearest right one named; `pico params` checks the file.",
    ]
    for name, field in Params.model_fields.items():
        if name == "optimizer":
            lines += _optimizers()
            continue
        section = section_of(field.annotation)
        title = f"{name}.NAME" if _is_dict(field.annotation) else name
        lines += ["", f"## `{title}`", "", (section.__doc__ if section else field.description or "").strip(), ""]
        if section:
            lines += ["| key | type | meaning |", "|---|---|---|", *_rows(section, "")]
    return "\n".join(lines) + "\n"


def _optimizers() -> list[str]:
    """A table for each optimizer that `optimizer.name` may name."""
    lines = ["", "## `optimizer`", "", "`name` says which; each has keys of its own."]
    for name, kind in OPTIMIZERS.items():
        lines += ["", f"### `{name}`", "", cleandoc(kind.__doc__ or ""), ""]
        lines += ["| key | type | meaning |", "|---|---|---|", *_rows(kind, "")]
    return lines


def _rows(section: Any, prefix: str) -> list[str]:
    """A table row a key, nested sections included."""
    rows: list[str] = []
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        key = f"{prefix}{name}" + ("[]" if "list" in str(field.annotation) and inner else "")
        meaning = (field.description or (inner.__doc__ if inner else "") or "").replace("\n", " ").strip()
        rows.append(f"| `{key}` | {'section' if inner else _type_name(field.annotation)} | {meaning} |")
        if inner:
            rows += _rows(inner, f"{key}.")
    return rows


def _type_name(annotation: Any) -> str:
    """`int`, `list of str`, `a or b`: short and readable."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join("null" if part is type(None) else _type_name(part) for part in arguments)
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"{_type_name(arguments[0])} to {_type_name(arguments[1])}"
    return annotation.__name__


def _is_dict(annotation: Any) -> bool:
    return str(annotation).startswith("dict")


if __name__ == "__main__":
    PAGE.write_text(page())
