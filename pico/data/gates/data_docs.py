"""Data Docs: the gates as Great Expectations shows them, one page a suite and an index, each a file that loads nothing.

The library's own pages take styles, scripts and pictures from seven places on the net, and hold the time of the run.
Here its renderer makes the sections and its view turns them into HTML, but the frame of the page is ours
(pico/data/templates): one style sheet inside, no script, no picture, no clock. Equal results give equal bytes.
"""

import copy
from html import escape
from pathlib import Path
from typing import Any

from pico.data.gates.expectations import Checked
from pico.files import write_atomic

TEMPLATES = Path(__file__).parent / "templates"


def write_data_docs(checked: Checked, folder: Path) -> None:
    """Writes index.html, documents.html and tokens.html."""
    view = _view()
    suites = {name: _document(name, entries) for name, entries in sorted(checked.suites.items())}
    results = {name: [result for _, result in entries] for name, entries in checked.suites.items()}
    shared = {"suites": sorted(suites)}
    for name, document in suites.items():
        page = view.render(document, suite=name, results=results[name], **shared)
        write_atomic(folder / f"{name}.html", _without_blank_lines(page))
    page = view.env.get_template("index.html.j2").render(results=results, **shared)
    write_atomic(folder / "index.html", _without_blank_lines(page))


def _document(name: str, entries: list[tuple[Any, dict[str, Any]]]) -> Any:
    """What the library would put on the page of a suite."""
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.render.renderer import ValidationResultsPageRenderer

    entries = [(found, result) for found, result in entries if result["passed"] is not None]
    passed = sum(result["passed"] for _, result in entries)
    validation = ExpectationSuiteValidationResult(
        success=passed == len(entries),
        results=[_escaped(found) for found, _ in entries if found is not None],
        suite_name=name,
        statistics={
            "evaluated_expectations": len(entries),
            "successful_expectations": passed,
            "unsuccessful_expectations": len(entries) - passed,
            "success_percent": 100 * passed / len(entries),
        },
        meta={"run_id": {"run_name": "gates", "run_time": "1970-01-01T00:00:00+00:00"}},
    )
    return ValidationResultsPageRenderer(run_info_at_end=True).render(validation)


def _escaped(found: Any) -> Any:
    """A result whose values can stand in a page: the library's tables take them for markup."""

    def safe(value: Any) -> Any:
        if isinstance(value, dict):
            return {safe(key): safe(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [safe(inner) for inner in value]
        return escape(value) if isinstance(value, str) else value

    found = copy.copy(found)
    found.result = {key: safe(value) for key, value in found.result.items()}
    return found


def _view() -> Any:
    """The library's view, with our frame in place of its own."""
    from great_expectations.render.view import DefaultJinjaPageView
    from jinja2 import ChoiceLoader, FileSystemLoader
    from markupsafe import Markup

    view = DefaultJinjaPageView()
    view.env.loader = ChoiceLoader([FileSystemLoader(TEMPLATES), *([view.env.loader] if view.env.loader else [])])
    view.env.filters["said"] = _said
    view.env.filters["name"] = lambda text: Markup(escape(text).replace("_", "_<wbr>").replace(".", ".<wbr>"))
    return view


def _said(value: Any) -> str:
    """A value of a gate as text."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _without_blank_lines(page: str) -> str:
    return "\n".join(line.rstrip() for line in page.splitlines() if line.strip()) + "\n"
