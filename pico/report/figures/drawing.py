"""Panels drawn with matplotlib and turned into small, deterministic SVG that lives inline in the page.

No pyplot: no global state, no window system. Margins are fixed rather than fitted, so that the picture doesn't depend
on the fonts of the machine; text stays text, in the page's own font.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullLocator

from pico.report.figures import colours
from pico.report.inputs.dynamics import Grid, Pairs
from pico.report.inputs.suite import Suite

STYLE: dict[Any, Any] = {
    "axes.edgecolor": colours.MUTED,
    "axes.labelcolor": colours.INK,
    "axes.linewidth": 0.6,
    "axes.titlecolor": colours.INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so tick choices are the same everywhere
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "axes.titlesize": 9.0,
    "grid.color": colours.RULE,
    "grid.linewidth": 0.5,
    "path.simplify": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "pico",
    "svg.image_inline": True,
    "text.color": colours.INK,
    "xtick.color": colours.MUTED,
    "xtick.labelcolor": colours.INK,
    "xtick.labelsize": 7.5,
    "ytick.color": colours.MUTED,
    "ytick.labelcolor": colours.INK,
    "ytick.labelsize": 7.5,
}
MAP = "viridis"
_DIGITS = re.compile(r"(-?\d+\.\d{2})\d+")
"""Coordinates to a hundredth of a point: nobody sees more, and the page is half the size."""


@dataclass(frozen=True)
class Panel:
    """One picture: the SVG, and a heading where the figure has several."""

    svg: str
    heading: str = ""
    size: tuple[float, float] = (4.0, 2.7)
    """Width and height in inches."""


@dataclass(frozen=True)
class Entry:
    """A line of a legend."""

    colour: str
    """A placeholder of pico.report.figures.colours, or, from `Painter.legend`, the CSS variable for it."""
    label: str
    sign: str = ""
    """A marker in place of a line."""


@dataclass(frozen=True)
class ColourBar:
    """The key of MAP: labels of its ends."""

    low: str
    high: str
    colours = tuple(to_hex(colormaps[MAP](place)) for place in np.linspace(0, 1, 9))


@dataclass(frozen=True)
class Figure:
    """Panels that share a caption. `legend`: "models", "layers" or "" (none)."""

    key: str
    title: str
    caption: str
    panels: list[Panel]
    legend: str = "models"
    colour_bars: list[ColourBar] = field(default_factory=list)
    columns: int = 2
    """Panels side by side where the screen has room."""
    entries: list[Entry] = field(default_factory=list)
    """A legend of its own, in place of that of models or layers."""
    says: str = ""
    """A plain sentence, worked out from the data, that states the result; stands after the caption."""


class Painter:
    """Draws panels of one suite: knows its colours, and gives every panel its own ids."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self._colours = colours.replacements(len(suite.models), suite.layers)

    @property
    def columns(self) -> int:
        """Small multiples side by side: one a model, so that rows compare models."""
        return min(4, max(2, len(self.suite.models)))

    def paint(
        self,
        key: str,
        label: str,
        draw: Callable[..., None],
        *drawn: Any,
        width: float = 4.0,
        height: float = 2.7,
        left: float = 0.5,
        heading: str = "",
    ) -> Panel:
        """Draws one panel, of `width` by `height` inches.

        `draw` gets empty axes, and `drawn`. `label` describes the picture in words, for those who don't see it.
        """
        right, top, bottom = 0.12, 0.12, 0.45
        with matplotlib.rc_context(STYLE):
            canvas = Canvas(figsize=(width, height))
            axes = canvas.add_axes(
                (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
            )
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(True, axis="y")
            axes.set_axisbelow(True)
            draw(axes, *drawn)
            return Panel(to_svg(canvas, label, key, self._colours), heading, (width, height))

    def legend(self, figure: Figure) -> list[Entry]:
        """Returns the legend of a figure, colours as CSS variables."""
        entries, signs = figure.entries, colours.MARKER_SIGNS
        if not entries and figure.legend == "layers":
            entries = [Entry(colours.layer_colour(layer), f"layer {layer}") for layer in range(self.suite.layers)]
        elif not entries and figure.legend:
            entries = [
                Entry(colours.model_colour(index), model.name, signs[index % len(signs)])
                for index, model in enumerate(self.suite.models)
            ]
        return [replace(entry, colour=self._colours[entry.colour]) for entry in entries]

    def layer_panel(
        self,
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
        """Draws a metric over log-step, one line a layer; a dashed line at `null`."""

        def draw(axes: Axes) -> None:
            if null is not None:
                dashed(axes, null)
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

        return self.paint(key, label, draw, width=2.9, height=2.1, heading=heading)

    def square_panel(self, key: str, label: str, pairs: Pairs, name: str, heading: str) -> Panel:
        """Draws the similarity of everything with everything, from 0 to 1; `name`: "step" or "layer"."""

        def draw(axes: Axes) -> None:
            heat_map(axes, pairs.values, 0, 1, origin="lower")
            shown = _some(len(pairs.places))
            names = [short_count(pairs.places[at]) for at in shown]
            axes.set_xticks(shown, names)
            axes.set_yticks(shown, names)
            axes.set_xlabel(name)
            axes.set_ylabel(name)

        return self.paint(key, label, draw, width=2.9, height=2.6, heading=heading)

    def domains_panel(self, key: str, label: str, names: list[str], draw: Callable[[Axes, np.ndarray], None]) -> Panel:
        """Draws a wide panel with one row a domain; `draw` gets the axes and the heights of the rows."""
        rows = np.arange(len(names))[::-1]

        def framed(axes: Axes) -> None:
            draw(axes, rows)
            axes.set_yticks(rows, names)
            axes.tick_params(axis="y", length=0)
            axes.set_ylim(-0.6, len(names) - 0.4)

        return self.paint(key, label, framed, width=9.2, height=0.75 + 0.3 * len(names), left=1.2)


def model_line(axes: Axes, index: int, x: np.ndarray, y: np.ndarray, **changes: Any) -> None:
    """Draws a line in the colour, width and marker of the `index`-th model; NaN leaves gaps."""
    axes.plot(
        x,
        y,
        **{
            "color": colours.model_colour(index),
            "linewidth": 1.1 + 0.25 * min(index, 5),
            "solid_capstyle": "round",
            "marker": colours.MARKERS[index % len(colours.MARKERS)],
            "markersize": 3.4,
            "markeredgewidth": 0,
            **changes,
        },
    )


def dashed(axes: Axes, height: float) -> None:
    """Draws a baseline: a dashed line across the panel."""
    axes.axhline(height, color=colours.MUTED, linewidth=0.9, dashes=(4, 2))


def heat_map(axes: Axes, values: np.ndarray, low: float, high: float, origin: Any = "upper") -> None:
    """Draws a matrix in the colours of MAP from `low` to `high`, NaN in grey.

    As an image of one pixel a cell, which the page enlarges: a hundredth of the bytes that rectangles take.
    """
    shades = colormaps[MAP].with_extremes(bad=(0.5, 0.5, 0.5, 0.35))
    masked = np.ma.masked_invalid(values)
    axes.imshow(masked, aspect="auto", cmap=shades, vmin=low, vmax=high, interpolation="none", origin=origin)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)


def step_axis(axes: Axes, last: int) -> None:
    """Sets steps 0, 1, 10, ... `last` on a logarithmic axis that has room for step 0."""
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    axes.set_xticks([0, *(10**power for power in range(len(str(last))))])
    count_axis(axes)
    axes.set_xlim(-0.15, last * 1.15)
    axes.set_xlabel("step")


def count_axis(axes: Axes) -> None:
    """Writes the horizontal axis in short counts, without minor ticks."""
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))


def short_count(value: float) -> str:
    """Formats 1000 as 1k, 2500000 as 2.5M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def to_svg(canvas: Canvas, label: str, prefix: str, replacements: Mapping[str, str]) -> str:
    """Returns the panel as an inline `<svg>` with accessible `label`; `prefix` keeps its ids apart from others'."""
    buffer = io.StringIO()
    # not by savefig, which draws everything twice, the first time for nothing
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    FigureCanvasSVG(canvas).print_svg(buffer, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]  # neither XML declaration nor DOCTYPE belong inside HTML
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.S)
    text = re.sub(r"<svg [^>]*>", lambda tag: re.sub(r' (?:width|height)="[^"]*"', "", tag.group()), text, count=1)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'(href="|url\()#([^")]+)', rf"\1#{prefix}-\2", text)
    text = re.sub("|".join(map(re.escape, replacements)), lambda found: replacements[found.group()], text)
    text = re.sub(r'\b(?:d|x|y|transform|points)="[^"]*"', lambda found: _DIGITS.sub(r"\1", found.group()), text)
    text = re.sub(r"font: ([^;\"']*?)(?:'DejaVu Sans'|&quot;DejaVu Sans&quot;)[^;\"]*", r"font: \1var(--sans)", text)
    text = re.sub(r">\s+<", "><", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label, quote=True)}" ', 1).strip()


def _some(count: int) -> Sequence[int]:
    """Returns at most seven places of `count`, the last among them."""
    stride = max(1, -(-count // 6))
    return sorted({count - 1, *(at for at in range(0, count, stride) if count - 1 - at >= stride or at == count - 1)})
