"""reports/index.html: one self-contained page, the same offline, in print, on a phone, in light and in dark."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pico.files import publishing, write_atomic, write_json
from pico.report.figures import colours
from pico.report.figures.charts import (
    Figure,
    Painter,
    benchmarks,
    domains,
    examples_of,
    loss_curves,
    metric_of,
    scaling,
)
from pico.report.figures.convergence import Convergence, convergence
from pico.report.figures.corpus import data_figures
from pico.report.figures.dynamics import dynamics_figures
from pico.report.figures.plots import write_plots
from pico.report.figures.sheets import write_sheets
from pico.report.inputs.data import Suite, suite_metrics, suite_table
from pico.report.inputs.settings import settings_table
from pico.report.pages.data import render_data
from pico.report.pages.explorer import render_explorer
from pico.report.pages.rendering import environment

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
    """Writes index.html, data.html, explorer.html, suite.json, metrics.json, plots/ and figures/ into `reports`.

    Each is a pure function of `suite`.

    Everything is worked out before the first file is replaced.
    """
    pictures = draw(suite, pixels=True)
    page, explorer = render(suite, pictures), render_explorer(suite)
    data = render_data(suite, pictures.painter, pictures.data)
    table, metrics = suite_table(suite), suite_metrics(suite)
    with publishing(reports / "plots") as plots:
        write_plots(suite, plots)
    with publishing(reports / "figures") as figures:
        write_sheets(pictures.painter, pictures.all, figures)
    write_json(reports / "suite.json", table)
    write_json(reports / "metrics.json", metrics)
    write_atomic(reports / "explorer.html", explorer)
    write_atomic(reports / "data.html", data)
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
    data: list[Figure]
    """Those of the data page."""

    @property
    def all(self) -> list[Figure]:
        """In the order of the pages."""
        settled = [self.convergence.figure] if self.convergence else []
        scored = [self.benchmarks] if self.benchmarks else []
        return [*self.results, self.domains, *self.dynamics, *settled, *scored, *self.data]


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
        data=data_figures(painter),
    )


def render(suite: Suite, pictures: Pictures | None = None) -> str:
    """The page as HTML; draws the pictures where they are not given."""
    pictures = pictures or draw(suite)
    layers = pictures.painter.layers
    per_domain, total = counts(suite.provenance)
    return (
        environment()
        .get_template("index.html.j2")
        .render(
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
            tasks=[
                (task, metric_of(suite, task), examples_of(suite, task), suite.chance(task)) for task in suite.tasks
            ],
            settings=settings_table(suite.params),
            per_domain=per_domain,
            total=total,
            count_columns=[(key, name) for key, name in COUNT_COLUMNS if key in total],
            prompts=list(dict.fromkeys(sample["prompt"] for model in suite.models for sample in model.samples)),
        )
    )


def counts(provenance: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Counts by domain, sorted, and in total."""
    return dict(sorted(provenance.get("domains", {}).items())), provenance.get("total", {})
