"""Panels that several figures share: curves by layer over log-step, and squares of similarities."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from pico.report.figures import colours
from pico.report.figures.charts import ColourBar, Painter, Panel
from pico.report.figures.svg import short_count, step_axis
from pico.report.inputs.measurements import Grid, Pairs

MAP = "viridis"


def colour_bar(name: str, low: str, high: str) -> ColourBar:
    """The key of MAP between two ends."""
    return ColourBar(name, [to_hex(colormaps[MAP](place)) for place in np.linspace(0, 1, 9)], low, high)


def layer_panel(
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


def square_panel(painter: Painter, key: str, label: str, pairs: Pairs, name: str, heading: str) -> Panel:
    """Similarity of everything with everything, from 0 to 1; `name`: what the places are."""

    def draw(axes: Axes) -> None:
        shades = colormaps[MAP].with_extremes(bad=(0.5, 0.5, 0.5, 0.35))
        values = np.ma.masked_invalid(pairs.values)
        axes.imshow(values, cmap=shades, vmin=0, vmax=1, interpolation="none", origin="lower", aspect="auto")
        shown = _some(len(pairs.places))
        names = [short_count(pairs.places[at]) for at in shown]
        axes.set_xticks(shown, names)
        axes.set_yticks(shown, names)
        axes.tick_params(length=0)
        axes.grid(False)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.set_xlabel(name)
        axes.set_ylabel(name)

    return painter.paint(key, label, draw, width=2.9, height=2.6, heading=heading)


def _some(count: int) -> Sequence[int]:
    """At most seven places of `count`, the last among them."""
    stride = max(1, -(-count // 6))
    return sorted({count - 1, *(at for at in range(0, count, stride) if count - 1 - at >= stride or at == count - 1)})
