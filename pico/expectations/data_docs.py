"""Data Docs: results as Great Expectations shows them, a page a suite and an index, each a file that loads nothing.

The library's own pages take styles, scripts and pictures from seven places on the net, and hold the time of the run.
Here its renderer makes the sections and its view turns them into HTML, but the frame of the page is ours
(pico/expectations/templates): one style sheet inside, no script, no picture, no clock. Equal results give equal bytes.
"""

import copy
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pico.files import write_atomic

TEMPLATES = Path(__file__).parent / "templates"
Entries = Sequence[tuple[Any, dict[str, Any]]]
"""Each expectation: what Great Expectations gave (None for a table of no rows), and the result."""


def write_data_docs(suites: Mapping[str, Entries], folder: Path, *, title: str) -> None:
    """Writes `index.html` and a page for each suite, by its name; an empty suite has none."""
    view = _view()
    suites = {name: entries for name, entries in suites.items() if entries}
    results = {name: [result for _, result in entries] for name, entries in suites.items()}
    index = view.env.get_template("page.j2").render(title=title, suite="", shown=list(results), results=results)
    write_atomic(folder / "index.html", _without_blank_lines(index))
    for name, entries in suites.items():
        page = view.render(_document(name, entries), title=title, suite=name, shown=[name], results=results)
        write_atomic(folder / f"{name}.html", _without_blank_lines(page))


def _document(name: str, entries: Entries) -> Any:
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.render.renderer import ValidationResultsPageRenderer

    asked = [(found, result) for found, result in entries if result["passed"] is not None]
    passed = sum(result["passed"] for _, result in asked)
    validation = ExpectationSuiteValidationResult(
        success=passed == len(asked),
        results=[_escaped(found) for found, _ in asked if found is not None],
        suite_name=name,
        statistics={
            "evaluated_expectations": len(asked),
            "successful_expectations": passed,
            "unsuccessful_expectations": len(asked) - passed,
            "success_percent": 100 * passed / max(1, len(asked)),
        },
        meta={"run_id": {"run_name": "gates", "run_time": "1970-01-01T00:00:00+00:00"}},
    )
    return ValidationResultsPageRenderer(run_info_at_end=True).render(validation)


def _escaped(found: Any) -> Any:
    """A result whose values can stand in a page: the library's tables take them for markup."""

    def safe(value: Any) -> Any:
        if isinstance(value, dict):
            return {safe(key): safe(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple | set):
            return [safe(inner) for inner in value]
        return escape(value) if isinstance(value, str) else value

    found = copy.copy(found)
    found.result = safe(found.result)
    return found


def _view() -> Any:
    from great_expectations.render.view import DefaultJinjaPageView
    from jinja2 import ChoiceLoader, FileSystemLoader
    from markupsafe import Markup

    view = DefaultJinjaPageView()
    view.env.loader = ChoiceLoader([FileSystemLoader(TEMPLATES), *([view.env.loader] if view.env.loader else [])])
    view.env.filters["said"] = _said
    view.env.filters["name"] = lambda text: Markup(escape(text).replace("_", "_<wbr>").replace(".", ".<wbr>"))
    return view


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _without_blank_lines(page: str) -> str:
    return "\n".join(line.rstrip() for line in page.splitlines() if line.strip()) + "\n"
