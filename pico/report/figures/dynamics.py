"""The report's figures of learning dynamics: how representations and weights of each layer change over training."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from pico.report.figures.behaviour import scores_against_loss
from pico.report.figures.charts import Figure, Painter, Panel
from pico.report.figures.panels import MAP, colour_bar, layer_panel
from pico.report.figures.seeds import seed_bands
from pico.report.figures.similarity import similarity_figures
from pico.report.figures.spectra import spectra_over_steps
from pico.report.figures.svg import short_count
from pico.report.inputs.data import Model
from pico.report.inputs.measurements import Grid
from pico.report.inputs.spectra import spread_steps

COLUMNS = 24
"""Checkpoints at most in a heat map: evenly spread over log-step."""


HEAD_METRIC = "per"
HEADS = 12
"""Panels at most of the figure by head."""


@dataclass(frozen=True)
class HeatMap:
    """A metric drawn over layer and step."""

    metric: str
    component: str
    title: str
    says: str
    logarithmic: bool = False


HEAT_MAPS = (
    HeatMap(
        "per",
        "simple",
        "Proportional effective rank",
        "exp of the entropy of the normalised singular values, over the smaller side: 1 where all directions count "
        "alike",
    ),
    HeatMap("effective_rank", "simple", "Effective rank", "exp of the entropy of the normalised singular values"),
    HeatMap(
        "condition_number",
        "simple",
        "Condition number",
        "largest over smallest singular value of the numerical rank, on a logarithmic scale",
        logarithmic=True,
    ),
    HeatMap(
        "gini",
        "simple",
        "Gini coefficient",
        "inequality of the absolute values: 0 where all are equal, 1 where one has all",
    ),
    HeatMap(
        "effective_rank",
        "ov_circuit",
        "Effective rank of OV circuits",
        "of W_O W_V of each head, the mean over the heads of a layer",
    ),
)


def dynamics_figures(painter: Painter) -> list[Figure]:
    """All figures for which there are values."""
    found = [
        *similarity_figures(painter),
        relative_change(painter),
        *(heat_map(painter, one) for one in HEAT_MAPS),
        per_head(painter),
        spectra_over_steps(painter),
        *seed_bands(painter),
        *scores_against_loss(painter),
    ]
    return [figure for figure in found if figure is not None]


def relative_change(painter: Painter) -> Figure | None:
    """How much the weights of each layer changed since the checkpoint before."""
    panels = []
    modules: set[str] = set()
    for index, model in enumerate(painter.suite.models):
        grid = model.dynamics.grid("relative_change", "simple", "weights")
        modules.update(model.dynamics.modules("relative_change", "simple", "weights"))
        if np.isfinite(grid.values).any():
            label = f"Relative change of the weights of {model.name}, by layer, over steps"
            panels.append(
                layer_panel(painter, f"change-{index}", label, grid, "‖ΔW‖ / ‖W‖", model.name, logarithmic=True)
            )
    if not panels:
        return None
    return Figure(
        "change",
        "Relative change of weights",
        "Frobenius norm of the difference to the preceding checkpoint, relative to that checkpoint's norm; the mean "
        "over the captured "
        f"modules ({', '.join(sorted(modules))}) of a layer. Checkpoints are close "
        f"together at "
        "first and far apart later, so part of the rise is the longer interval. One run a model.",
        panels,
        legend="layers",
        columns=painter.columns,
    )


def per_head(painter: Painter) -> Figure | None:
    """A small panel a head of the largest model: OV circuits, by layer, over steps."""
    model = painter.suite.models[-1]
    heads = model.dynamics.heads(HEAD_METRIC, "ov_circuit", "weights")
    grids = [model.dynamics.grid(HEAD_METRIC, "ov_circuit", "weights", head=head) for head in heads[:HEADS]]
    if not any(np.isfinite(grid.values).any() for grid in grids):
        return None
    low = min(float(np.nanmin(grid.values)) for grid in grids)
    high = max(float(np.nanmax(grid.values)) for grid in grids)
    room = 0.06 * (high - low or 1)
    panels = [
        layer_panel(
            painter,
            f"head-{head}",
            f"Proportional effective rank of the OV circuit of head {head} of {model.name}, by layer, over steps",
            grid,
            "PER",
            f"head {head}",
            limits=(low - room, high + room),
        )
        for head, grid in zip(heads, grids, strict=False)
    ]
    shown = f"the first {HEADS} of {len(heads)} heads" if len(heads) > HEADS else "every head"
    return Figure(
        "heads",
        "OV circuits head by head",
        f"Proportional effective rank of W_O W_V of {shown} of {model.name}, by layer, over steps, logarithmic: exp of "
        "the entropy of the singular values, over the rank that the head's width allows. Heads that share a key/value "
        "head share W_V. All panels have one scale. The explorer shows other metrics and models. One run.",
        panels,
        legend="layers",
        columns=4 if len(panels) > 3 else len(panels),
    )


def heat_map(painter: Painter, one: HeatMap) -> Figure | None:
    """Layers (and, for `simple`, modules) against checkpoints; one colour scale for all models."""
    found = [(index, model, *_stack(model, one)) for index, model in enumerate(painter.suite.models)]
    found = [entry for entry in found if np.isfinite(entry[3].values).any()]
    if not found:
        return None
    scaled = [
        np.log10(np.where(entry[3].values > 0, entry[3].values, np.nan)) if one.logarithmic else entry[3].values
        for entry in found
    ]
    low, high = min(map(np.nanmin, scaled)), max(map(np.nanmax, scaled))
    panels = [
        _heat_panel(painter, f"heat-{one.metric}-{one.component}-{index}", one, model, rows, grid, values, low, high)
        for (index, model, rows, grid), values in zip(found, scaled, strict=True)
    ]
    ends = [short_count(10**end if one.logarithmic else end) for end in (low, high)]
    bar = colour_bar(one.title, *ends)
    rows = "Rows are layers, from the input down" + (
        ", within each captured module. " if one.component == "simple" else ". "
    )
    return Figure(
        f"heat-{one.metric}-{one.component}",
        one.title,
        f"{one.says[0].upper()}{one.says[1:]}. Of the weights, at up to {COLUMNS} checkpoints spread over log-step. "
        f"{rows}"
        "All models share one colour scale; grey: not defined. One run a model.",
        panels,
        legend="",
        colour_bars=[bar],
        columns=painter.columns,
    )


def _stack(model: Model, one: HeatMap) -> tuple[list[tuple[str, int]], Grid]:
    """The grids of all modules below each other: (module, number of its layers) in order, and values (rows, steps)."""
    modules: list[str | None] = list(model.dynamics.modules(one.metric, one.component, "weights"))
    grids = [model.dynamics.grid(one.metric, one.component, "weights", module=module) for module in modules or [None]]
    steps = sorted({step for grid in grids for step in grid.steps})
    if not steps:
        return [], Grid([], [], np.full((0, 0), np.nan))
    columns = spread_steps(steps, COLUMNS)
    values = np.full((sum(len(grid.layers) for grid in grids), len(columns)), np.nan)
    start = 0
    for grid in grids:
        for column, step in enumerate(columns):
            if step in grid.steps:
                values[start : start + len(grid.layers), column] = grid.values[:, grid.steps.index(step)]
        start += len(grid.layers)
    rows = [(module or "", len(grid.layers)) for module, grid in zip(modules or [None], grids, strict=True)]
    return rows, Grid([layer for grid in grids for layer in grid.layers], columns, values)


def _heat_panel(
    painter: Painter,
    key: str,
    one: HeatMap,
    model: Model,
    rows: list[tuple[str, int]],
    grid: Grid,
    values: np.ndarray,
    low: float,
    high: float,
) -> Panel:
    def draw(axes: Axes) -> None:
        shades = colormaps[MAP].with_extremes(bad=(0.5, 0.5, 0.5, 0.35))
        # As an image of one pixel a cell, which the page enlarges: a hundredth of the bytes that rectangles take.
        axes.imshow(
            np.ma.masked_invalid(values),
            aspect="auto",
            cmap=shades,
            vmin=low,
            vmax=high if high > low else low + 1,
            interpolation="none",
        )
        ends = np.cumsum([0, *(count for _, count in rows)])
        for end in ends[1:-1]:
            axes.axhline(end - 0.5, color="#ffffff", linewidth=1.2)
        middles = [(start + end - 1) / 2 for start, end in pairwise(ends)]
        names = [name.removeprefix("attention.").removeprefix("swiglu.") for name, _ in rows]
        axes.set_yticks(middles, names) if any(names) else axes.set_yticks(
            range(len(grid.layers)), [str(layer) for layer in grid.layers]
        )
        shown = sorted({0, len(grid.steps) - 1, *range(0, len(grid.steps) - 2, max(1, math.ceil(len(grid.steps) / 5)))})
        axes.set_xticks(shown, [short_count(grid.steps[column]) for column in shown])
        axes.tick_params(length=0)
        axes.grid(False)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.set_xlabel("step")
        if not any(names):
            axes.set_ylabel("layer")

    label = f"{one.title} of {model.name} over layers and steps"
    return painter.paint(key, label, draw, width=2.9, height=2.1, left=0.5, heading=model.name)
