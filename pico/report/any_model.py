"""Pictures of any analysed model: those of the report that the analysis table and the checkpoints are enough for."""

from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from pico.checkpoint import checkpoints
from pico.config import Params, Report
from pico.config import Suite as SuiteSettings
from pico.files import publishing, write_atomic
from pico.report.figures.drawing import Painter
from pico.report.figures.dynamics import dynamics_figures
from pico.report.figures.sheets import write_sheets
from pico.report.figures.similarity import convergence
from pico.report.inputs.dynamics import Dynamics, read_dynamics, read_spectra
from pico.report.inputs.suite import Model, Suite, Training
from pico.report.pages.explorer import render_explorer


def write_pictures(folder: Path, run: Path, name: str) -> list[str]:
    """Writes `figures/*.svg`, `figures/*.png` and `explorer.html` into an analysis; returns the names of the figures.

    folder: holds the table, `step_*.parquet`. run: the checkpoints that it was made of, for spectra of their weights.
    Figures and explorer are replaced whole. A single checkpoint has no curves over steps: only figures that have values
    are drawn.
    Raises PicoError where the table is missing or cannot be read.
    """
    suite = suite_of(read_dynamics(folder), run, name)
    painter = Painter(suite)
    found = convergence(painter) if len(suite.models[0].dynamics.table["step"].unique()) > 1 else None
    figures = [*dynamics_figures(painter), *([found.figure] if found else [])]
    explorer = render_explorer(suite)
    with publishing(folder / "figures") as target:
        write_sheets(painter, figures, target)
    write_atomic(folder / "explorer.html", explorer)
    return [figure.key for figure in figures]


def suite_of(dynamics: Dynamics, run: Path, name: str) -> Suite:
    """Returns one model as a suite, with the parts that figures of learning dynamics need, and no others."""
    modules = dynamics.modules("frobenius_norm", "simple", "weights") or dynamics.modules("per", "simple", "weights")
    rows = pc.max(dynamics.table.filter(pc.field("data_type") == "activations")["n"]).as_py() or 0
    model = Model(
        name=name,
        config={"n_layers": (pc.max(dynamics.table["layer"]).as_py() or 0) + 1},
        parameters=0,  # as the next: no figure of learning dynamics shows it
        embedding_parameters=0,
        training=Training(*[np.empty(0)] * 3),
        evaluations=[],
        dynamics=dynamics,
        samples=[],
        spectra=read_spectra([one.folder for one in checkpoints(run)], modules) if modules else None,
        seedless="",
    )
    params = Params.model_construct(
        report=Report(title=name), suite=SuiteSettings.model_construct(scale="analyzed", models=[name])
    )
    return Suite(params, [], {}, [], [model], batch=f"one batch for all checkpoints (n = {rows} rows)")
