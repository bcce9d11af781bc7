"""The report's figures of learning dynamics: representations, weights and behaviour over training."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes

from pico.report.figures import colours
from pico.report.figures.drawing import (
    ColourBar,
    Entry,
    Figure,
    Painter,
    dashed,
    heat_map,
    model_line,
    short_count,
)
from pico.report.figures.results import seed_bands
from pico.report.figures.similarity import cka_to_final, layer_squares, linear_cka_to_final, step_squares
from pico.report.inputs.dynamics import Grid, Spectra, spread_steps
from pico.report.inputs.suite import Model

COLUMNS = 24
"""Checkpoints at most in a heat map: evenly spread over log-step."""
HEAD_METRIC = "per"
HEADS = 12
"""Panels at most of the figure by head."""
CHANGE_METRIC = "relative_change"


@dataclass(frozen=True)
class HeatMap:
    """A metric of weights drawn over layer and step."""

    metric: str
    component: str
    title: str
    caption: str
    logarithmic: bool = False


HEAT_MAPS = (
    HeatMap(
        "per",
        "simple",
        "Proportional effective rank",
        "Exp of the entropy of the normalised singular values, over the smaller side: 1 where all directions count "
        "alike",
    ),
    HeatMap("effective_rank", "simple", "Effective rank", "Exp of the entropy of the normalised singular values"),
    HeatMap(
        "condition_number",
        "simple",
        "Condition number",
        "Largest over smallest singular value of the numerical rank, on a logarithmic scale",
        logarithmic=True,
    ),
    HeatMap(
        "gini",
        "simple",
        "Gini coefficient",
        "Inequality of the absolute values: 0 where all are equal, 1 where one has all",
    ),
    HeatMap(
        "effective_rank",
        "ov_circuit",
        "Effective rank of OV circuits",
        "Of W_O W_V of each head, the mean over the heads of a layer",
    ),
)


@dataclass(frozen=True)
class Score:
    """A metric of behaviour that is drawn against loss."""

    metric: str
    title: str
    combine: str
    """The way values of layers and heads become one: "max" or "mean"."""
    caption: str


SCORES = (
    Score(
        "in_context_score",
        "In-context score against loss",
        "mean",
        "How much lower the loss is late in a context than early in it (negative: the context helps; Olsson et al. "
        "2022)",
    ),
    Score(
        "induction_score",
        "Induction score against loss",
        "max",
        "The attention of the best head, on repeated random tokens, to the token after the earlier occurrence "
        "(a perfect head: 1)",
    ),
)


def dynamics_figures(painter: Painter) -> list[Figure]:
    """Returns all figures for which there are values."""
    found = [
        cka_to_final(painter),
        linear_cka_to_final(painter),
        step_squares(painter),
        layer_squares(painter),
        relative_change(painter),
        *(weights_over_steps(painter, one) for one in HEAT_MAPS),
        per_head(painter),
        spectra_over_steps(painter),
        seed_bands(painter),
        *(score_against_loss(painter, one) for one in SCORES),
    ]
    return [figure for figure in found if figure is not None]


def relative_change(painter: Painter) -> Figure | None:
    """Draws the change of each layer's weights since the checkpoint before."""
    panels = []
    modules: set[str] = set()
    for index, model in enumerate(painter.suite.models):
        grid = model.dynamics.grid(CHANGE_METRIC, "simple", "weights")
        modules.update(model.dynamics.modules(CHANGE_METRIC, "simple", "weights"))
        if np.isfinite(grid.values).any():
            label = f"Relative change of the weights of {model.name}, by layer, over steps"
            panels.append(
                painter.layer_panel(f"change-{index}", label, grid, "‖ΔW‖ / ‖W‖", model.name, logarithmic=True)
            )
    if not panels:
        return None
    return Figure(
        "change",
        "Relative change of weights",
        "Frobenius norm of the difference to the preceding checkpoint, relative to that checkpoint's norm; the mean "
        f"over the captured modules ({', '.join(sorted(modules))}) of a layer. Checkpoints are close together at first "
        "and far apart later, so part of the rise is the longer interval. One run a model.",
        panels,
        legend="layers",
        columns=painter.columns,
    )


def per_head(painter: Painter) -> Figure | None:
    """Draws a small panel a head of the largest model: OV circuits, by layer, over steps."""
    model = painter.suite.models[-1]
    heads = model.dynamics.heads(HEAD_METRIC, "ov_circuit", "weights")
    grids = [model.dynamics.grid(HEAD_METRIC, "ov_circuit", "weights", head=head) for head in heads[:HEADS]]
    if not any(np.isfinite(grid.values).any() for grid in grids):
        return None
    low = min(float(np.nanmin(grid.values)) for grid in grids)
    high = max(float(np.nanmax(grid.values)) for grid in grids)
    room = 0.06 * (high - low or 1)
    panels = [
        painter.layer_panel(
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


def weights_over_steps(painter: Painter, one: HeatMap) -> Figure | None:
    """Draws layers (and, for `simple`, modules) against checkpoints; one colour scale for all models."""
    found = [(index, model, *_stack(model, one)) for index, model in enumerate(painter.suite.models)]
    found = [entry for entry in found if np.isfinite(entry[3].values).any()]
    if not found:
        return None
    scaled = [
        np.log10(np.where(entry[3].values > 0, entry[3].values, np.nan)) if one.logarithmic else entry[3].values
        for entry in found
    ]
    low, high = min(map(np.nanmin, scaled)), max(map(np.nanmax, scaled))

    def draw(axes: Axes, rows: list[tuple[str, int]], grid: Grid, values: np.ndarray) -> None:
        heat_map(axes, values, low, high if high > low else low + 1)
        ends = np.cumsum([0, *(count for _, count in rows)])
        for end in ends[1:-1]:
            axes.axhline(end - 0.5, color="#ffffff", linewidth=1.2)
        names = [name.removeprefix("attention.").removeprefix("swiglu.") for name, _ in rows]
        if any(names):
            axes.set_yticks([(start + end - 1) / 2 for start, end in pairwise(ends)], names)
        else:
            axes.set_yticks(range(len(grid.layers)), [str(layer) for layer in grid.layers])
            axes.set_ylabel("layer")
        shown = sorted({0, len(grid.steps) - 1, *range(0, len(grid.steps) - 2, max(1, math.ceil(len(grid.steps) / 5)))})
        axes.set_xticks(shown, [short_count(grid.steps[column]) for column in shown])
        axes.set_xlabel("step")

    key = f"heat-{one.metric}-{one.component}"
    panels = []
    for (index, model, rows, grid), values in zip(found, scaled, strict=True):
        label = f"{one.title} of {model.name} over layers and steps"
        panels.append(
            painter.paint(f"{key}-{index}", label, draw, rows, grid, values, width=2.9, height=2.1, heading=model.name)
        )
    within = ", within each captured module" if one.component == "simple" else ""
    return Figure(
        key,
        one.title,
        f"{one.caption}. Of the weights, at up to {COLUMNS} checkpoints spread over log-step. Rows are layers, from "
        f"the input down{within}. All models share one colour scale; grey: not defined. One run a model.",
        panels,
        legend="",
        colour_bars=[ColourBar(*(short_count(10**end if one.logarithmic else end) for end in (low, high)))],
        columns=painter.columns,
    )


def _stack(model: Model, one: HeatMap) -> tuple[list[tuple[str, int]], Grid]:
    """Returns (module, number of its layers) in order, and the grids of all modules below each other."""
    modules: list[str | None] = [*model.dynamics.modules(one.metric, one.component, "weights")] or [None]
    grids = [model.dynamics.grid(one.metric, one.component, "weights", module=module) for module in modules]
    steps = sorted({step for grid in grids for step in grid.steps})
    columns = spread_steps(steps, COLUMNS)
    values = np.full((sum(len(grid.layers) for grid in grids), len(columns)), np.nan)
    start = 0
    for grid in grids:
        for column, step in enumerate(columns):
            if step in grid.steps:
                values[start : start + len(grid.layers), column] = grid.values[:, grid.steps.index(step)]
        start += len(grid.layers)
    rows = [(module or "", len(grid.layers)) for module, grid in zip(modules, grids, strict=True)]
    return rows, Grid([layer for grid in grids for layer in grid.layers], columns, values)


def spectra_over_steps(painter: Painter) -> Figure | None:
    """Draws the singular values of one weight at several checkpoints, a panel a model; None without weights."""
    found = [(index, model, model.spectra) for index, model in enumerate(painter.suite.models) if model.spectra]
    if not found:
        return None
    steps = sorted({step for _, _, spectra in found for step in spectra.steps})
    top = max(float(spectra.values.max()) for _, _, spectra in found)
    colour = {step: colours.step_colour(place / max(1, len(steps) - 1)) for place, step in enumerate(steps)}

    def draw(axes: Axes, spectra: Spectra) -> None:
        for edge in spectra.edges:
            dashed(axes, edge)
        places = (np.arange(spectra.values.shape[1]) + 0.5) / spectra.values.shape[1]
        for step, values in zip(spectra.steps, spectra.values, strict=True):
            axes.plot(places, values, color=colour[step], linewidth=1.3)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.05 * top)
        axes.set_xlabel("rank / number of singular values")
        axes.set_ylabel("singular value")

    panels = [
        painter.paint(
            f"spectra-{index}",
            f"Singular values of {spectra.module} of layer {spectra.layer} of {model.name} at several steps",
            draw,
            spectra,
            width=2.9,
            height=2.1,
            heading=f"{model.name} · {spectra.module}, layer {spectra.layer}, {' × '.join(map(str, spectra.shape))}",
        )
        for index, model, spectra in found
    ]
    above = ", ".join(
        f"{int((spectra.values[-1] > spectra.edges[1]).sum())} of {spectra.values.shape[1]} in {model.name}"
        for _, model, spectra in found
    )
    return Figure(
        "spectra",
        "Spectra of weights",
        "Singular values, in descending order, of one weight matrix of the middle layer at several checkpoints, over "
        "σ √max(m, n), σ being the root mean square entry at that step. Dashed: the Marchenko-Pastur edges, between "
        "which the singular values of independent entries lie; what rises above the upper one was learned. Of single "
        "matrices; one run a model.",
        panels,
        entries=[Entry(colour[step], f"step {short_count(step)}") for step in steps],
        columns=painter.columns,
        says=f"Above the upper edge at the last checkpoint: {above}.",
    )


def score_against_loss(painter: Painter, score: Score) -> Figure | None:
    """Draws a score of behaviour against training loss; None where no model has it."""
    curves = [_score_and_loss(model, score) for model in painter.suite.models]
    if not any(len(losses) for losses, _ in curves):
        return None

    def draw(axes: Axes) -> None:
        for index, (losses, values) in enumerate(curves):
            model_line(axes, index, losses, values)
        axes.invert_xaxis()
        axes.set_xlabel("training loss (nats per token), falling")
        axes.set_ylabel(score.metric.replace("_", " "))

    return Figure(
        f"score-{score.metric}",
        score.title,
        f"{score.caption}, of every checkpoint, against the training loss at that step (the mean in bins of log-step), "
        "which falls from left to right. One run a model.",
        [painter.paint(f"score-{score.metric}", score.title, draw, width=6.0)],
        columns=1,
    )


def _score_and_loss(model: Model, score: Score) -> tuple[np.ndarray, np.ndarray]:
    """Returns training losses, smoothed as in the loss curve, in order of step, and the score at the same steps.

    Between the smoothed curve's points the loss is taken as linear in ln(1 + step); checkpoints before its first point,
    whose training loss nobody measured, are left out.
    """
    steps, values = model.dynamics.curve(score.metric, score.combine)
    at, loss = model.training.smoothed
    if not len(at):
        return at, at
    inside = (steps >= at[0]) & (steps <= model.training.step.max())
    return np.interp(np.log1p(steps[inside]), np.log1p(at), loss), values[inside]
