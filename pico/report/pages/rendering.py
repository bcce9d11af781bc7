"""Rendering of the report's pages: their templates, the colours of a suite, and the way numbers are written."""

from importlib import resources
from typing import Any

import jinja2

from pico.report.figures import colours
from pico.report.inputs.suite import Suite


def render_page(template: str, suite: Suite, **values: Any) -> str:
    """Returns a template of `templates/` as HTML: escaped, and filled in with the suite and `values`.

    An undefined name is an error.
    """
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(template_text),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters.update(number=_number, count=_count, short=_short, share=_share, plain=_plain)
    made.tests["beaten"] = _above_chance
    light, dark = (
        colours.declarations(colours.values(mode, len(suite.models), suite.layers)) for mode in ("light", "dark")
    )
    return made.get_template(template).render(
        suite=suite,
        params=suite.params,
        page=colours.PAGE,
        light=light,
        dark=dark,
        signs=colours.MARKER_SIGNS,
        **values,
    )


def template_text(name: str) -> str:
    """Returns the text of a file of `templates/`."""
    return resources.files("pico.report.pages").joinpath("templates", name).read_text(encoding="utf-8")


def _number(value: float | None, digits: int = 3) -> str:
    return "—" if value is None else f"{value:,.{digits}f}"


def _count(value: float | None) -> str:
    """Returns whole numbers with separators, others with two decimals."""
    if value is None:
        return "—"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _short(value: float) -> str:
    """Returns 12.3 M and the like, to three digits."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "—"


def _plain(value: Any) -> str:
    """Returns a gate's observation or limit as text: numbers with separators, lists and mappings item by item."""
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
    """Returns true where a benchmark value lies more than two standard errors above chance."""
    if None in (result["value"], result["stderr"], result["chance"]):
        return False
    return result["value"] - 2 * result["stderr"] > result["chance"]
