"""The report's figures of learning dynamics: how representations and weights of each layer change over training."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from pico.report import colours
from pico.report.data import Grid, Model
from pico.report.figures import ColourBar, Figure, Painter, Panel
from pico.report.svg import short_count, step_axis

COLUMNS = 24
"""Checkpoints at most in a heat map: evenly spread over log-step."""
MAP = "viridis"
CKA = ("debiased_cka", "linear_cka")
"""Drawn: the first of these that was computed."""


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
    found = [cka_to_final(painter), relative_change(painter), *(heat_map(painter, one) for one in HEAT_MAPS)]
    return [figure for figure in found if figure is not None]


def cka_metric(model: Model) -> str | None:
    """Which CKA was computed on the activations of this model."""
    return next((name for name in CKA if model.dynamics.modules(name, "simple", "activations")), None)


def cka_to_final(painter: Painter) -> Figure | None:
    """CKA of each layer's activations to those of the last checkpoint, a panel per module and model."""
    suite, panels = painter.suite, []
    metrics = {cka_metric(model) for model in suite.models} - {None}
    for module in sorted(
        {
            module
            for model in suite.models
            for metric in metrics
            for module in model.dynamics.modules(metric or "", "simple", "activations")
        }
    ):
        for index, model in enumerate(suite.models):
            grid = model.dynamics.grid(cka_metric(model) or "", "simple", "activations", split="val", module=module)
            if grid.steps:
                label = f"CKA of {module} of {model.name} to the last checkpoint, by layer, over steps"
                panels.append(
                    _layer_panel(
                        painter,
                        f"cka-{module.replace('.', '-')}-{index}",
                        label,
                        grid,
                        "CKA to final",
                        f"{model.name} · {module}",
                        limits=(-0.05, 1.03),
                        null=0.0,
                    )
                )
    if not panels:
        return None
    debiased = "debiased_cka" in metrics
    dynamics = suite.params.learning_dynamics
    return Figure(
        "cka",
        "Similarity to the final representation",
        f"{'Debiased l' if debiased else 'L'}inear CKA (centred kernel alignment) between the activations of each "
        f"checkpoint and those of the last "
        f"one, by layer, on a fixed held-out batch of {dynamics.batch_size} sequences at {dynamics.positions} "
        f"positions each (n = {dynamics.batch_size * dynamics.positions} rows). 1: the same up to rotation and scale. "
        + (
            "The dashed line at 0 is what independent representations give."
            if debiased
            else "Without debiasing, independent representations give well over 0 where a layer is wide."
        )
        + " Steps are logarithmic; one run a model.",
        panels,
        legend="layers",
        columns=painter.columns,
    )


def relative_change(painter: Painter) -> Figure | None:
    """How much the weights of each layer changed since the checkpoint before."""
    panels = []
    for index, model in enumerate(painter.suite.models):
        grid = model.dynamics.grid("relative_change", "simple", "weights")
        if np.isfinite(grid.values).any():
            label = f"Relative change of the weights of {model.name}, by layer, over steps"
            panels.append(
                _layer_panel(painter, f"change-{index}", label, grid, "‖ΔW‖ / ‖W‖", model.name, logarithmic=True)
            )
    if not panels:
        return None
    return Figure(
        "change",
        "Relative change of weights",
        "Frobenius norm of the difference to the preceding checkpoint, relative to that checkpoint's norm; the mean "
        "over the captured "
        f"modules ({', '.join(painter.suite.params.learning_dynamics.layers)}) of a layer. Checkpoints are close "
        f"together at "
        "first and far apart later, so part of the rise is the longer interval. One run a model.",
        panels,
        legend="layers",
        columns=painter.columns,
    )


def _layer_panel(
    painter: Painter,
    key: str,
    label: str,
    grid: Grid,
    name: str,
    heading: str,
    *,
    limits: tuple[float, float] | None = None,
    null: float | None = None,
    logarithmic: bool = False,
) -> Panel:
    """Lines over log-step, one a layer."""

    def draw(axes: Axes) -> None:
        if null is not None:
            axes.axhline(null, color=colours.MUTED, linewidth=0.9, dashes=(4, 2))
        for row, layer in enumerate(grid.layers):
            axes.plot(
                grid.steps,
                grid.values[row],
                color=colours.layer_colour(layer),
                linewidth=1.4,
                marker="o",
                markersize=2.2,
                markeredgewidth=0,
            )
        if logarithmic and np.nanmax(np.nan_to_num(grid.values)) > 0:
            axes.set_yscale("log")
        step_axis(axes, grid.steps[-1])
        if limits:
            axes.set_ylim(*limits)
        axes.set_ylabel(name)

    return painter.paint(key, label, draw, width=2.9, height=2.1, heading=heading)


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
    bar = ColourBar(one.title, [to_hex(colormaps[MAP](place)) for place in np.linspace(0, 1, 9)], *ends)
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
    columns = _spread(steps, COLUMNS)
    values = np.full((sum(len(grid.layers) for grid in grids), len(columns)), np.nan)
    start = 0
    for grid in grids:
        for column, step in enumerate(columns):
            if step in grid.steps:
                values[start : start + len(grid.layers), column] = grid.values[:, grid.steps.index(step)]
        start += len(grid.layers)
    rows = [(module or "", len(grid.layers)) for module, grid in zip(modules or [None], grids, strict=True)]
    return rows, Grid([layer for grid in grids for layer in grid.layers], columns, values)


def _spread(steps: list[int], count: int) -> list[int]:
    """At most `count` of the steps: first, last, and others evenly spread over log-step."""
    if len(steps) <= count:
        return steps
    places = np.geomspace(1, steps[-1] + 1, count) - 1
    return sorted({steps[int(np.abs(np.log1p(steps) - math.log1p(place)).argmin())] for place in places})


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
