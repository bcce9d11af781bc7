"""The environment in which the report's pages are rendered: their templates, and how numbers are written."""

from importlib import resources
from typing import Any

import jinja2


def environment() -> jinja2.Environment:
    """Jinja with escaping on; an undefined name is an error."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters.update(number=_number, count=_count, short=_short, share=_share, plain=_plain)
    made.tests["beaten"] = _above_chance
    return made


def _template(name: str) -> str:
    return resources.files("pico.report.pages").joinpath("templates", name).read_text(encoding="utf-8")


def _number(value: float | None, digits: int = 3) -> str:
    return "—" if value is None else f"{value:,.{digits}f}"


def _count(value: float | None) -> str:
    """Whole numbers with separators, others with two decimals."""
    if value is None:
        return "—"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _short(value: float) -> str:
    """12.3 M and the like, to three digits."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "—"


def _plain(value: Any) -> str:
    """What a gate observed or allows, as text: numbers with separators, lists and mappings item by item."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if value is None or value == "":
        return "—"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _above_chance(result: dict[str, Any]) -> bool:
    """Whether a benchmark value lies more than two standard errors above chance."""
    if None in (result["value"], result["stderr"], result["chance"]):
        return False
    return result["value"] - 2 * result["stderr"] > result["chance"]
