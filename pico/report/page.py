"""reports/index.html: one self-contained page, the same offline, in print, on a phone, in light and in dark."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from pico.files import publishing, write_atomic, write_json
from pico.report import colours
from pico.report.convergence import Convergence, convergence
from pico.report.data import Suite, suite_metrics, suite_table
from pico.report.dynamics import dynamics_figures
from pico.report.explorer import render_explorer
from pico.report.figures import Figure, Painter, benchmarks, domains, examples_of, loss_curves, metric_of, scaling
from pico.report.plots import write_plots
from pico.report.settings import settings_table
from pico.report.sheets import write_sheets

COUNT_COLUMNS = (
    ("documents_read", "Documents read"),
    ("duplicates_dropped", "Duplicates dropped"),
    ("documents", "Kept"),
    ("bytes", "Bytes"),
    ("tokens", "Tokens"),
    ("bytes_per_token", "Bytes per token"),
    ("train_tokens", "Train tokens"),
    ("heldout_documents", "Held-out documents"),
    ("heldout_rows", "Held-out rows scored"),
)
"""Keys of provenance.json's entries, and their headings; a private corpus may lack some."""


def write_report(suite: Suite, reports: Path) -> None:
    """Writes index.html, explorer.html, suite.json, metrics.json, plots/ and figures/ into `reports`.

    Each is a pure function of `suite`.

    Everything is worked out before the first file is replaced.
    """
    pictures = draw(suite, pixels=True)
    page, explorer = render(suite, pictures), render_explorer(suite)
    table, metrics = suite_table(suite), suite_metrics(suite)
    with publishing(reports / "plots") as plots:
        write_plots(suite, plots)
    with publishing(reports / "figures") as figures:
        write_sheets(pictures.painter, pictures.all, figures)
    write_json(reports / "suite.json", table)
    write_json(reports / "metrics.json", metrics)
    write_atomic(reports / "explorer.html", explorer)
    write_atomic(reports / "index.html", page)


@dataclass(frozen=True)
class Pictures:
    """All figures of the report, by section."""

    painter: Painter
    results: list[Figure]
    domains: Figure
    dynamics: list[Figure]
    convergence: Convergence | None
    benchmarks: Figure | None

    @property
    def all(self) -> list[Figure]:
        """In the order of the page."""
        settled = [self.convergence.figure] if self.convergence else []
        scored = [self.benchmarks] if self.benchmarks else []
        return [*self.results, self.domains, *self.dynamics, *settled, *scored]


def draw(suite: Suite, *, pixels: bool = False) -> Pictures:
    """Draws everything; `pixels`: for PNG files too."""
    painter = Painter(suite, pixels=pixels)
    return Pictures(
        painter,
        results=[loss_curves(painter), scaling(painter)],
        domains=domains(painter),
        dynamics=dynamics_figures(painter),
        convergence=convergence(painter),
        benchmarks=benchmarks(painter),
    )


def render(suite: Suite, pictures: Pictures | None = None) -> str:
    """The page as HTML; draws the pictures where they are not given."""
    pictures = pictures or draw(suite)
    layers = pictures.painter.layers
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(number=_number, count=_count, short=_short, share=_share, plain=_plain)
    environment.tests["beaten"] = _above_chance
    per_domain, total = counts(suite.provenance)
    return environment.get_template("index.html.j2").render(
        suite=suite,
        params=suite.params,
        light=colours.variables("light", len(suite.models), layers),
        dark=colours.variables("dark", len(suite.models), layers),
        signs=colours.MARKER_SIGNS,
        layers=layers,
        results=pictures.results,
        domains=pictures.domains,
        dynamics=pictures.dynamics,
        convergence=pictures.convergence,
        benchmarks=pictures.benchmarks,
        legend=lambda figure: [
            (pictures.painter.colours[entry.colour], entry.sign, entry.label)
            for entry in pictures.painter.legend(figure)
        ],
        tasks=[(task, metric_of(suite, task), examples_of(suite, task), suite.chance(task)) for task in suite.tasks],
        settings=settings_table(suite.params),
        per_domain=per_domain,
        total=total,
        count_columns=[(key, name) for key, name in COUNT_COLUMNS if key in total],
        prompts=list(dict.fromkeys(sample["prompt"] for model in suite.models for sample in model.samples)),
    )


def counts(provenance: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Counts by domain, sorted, and in total."""
    return dict(sorted(provenance.get("domains", {}).items())), provenance.get("total", {})


def _template(name: str) -> str:
    return resources.files("pico.report").joinpath("templates", name).read_text(encoding="utf-8")


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
