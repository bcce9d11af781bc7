"""Panels drawn with matplotlib and turned into small, deterministic SVG that lives inline in the page.

No pyplot: no global state, no window system. Margins are fixed rather than fitted, so that the picture doesn't depend
on the fonts of the machine; text stays text, in the page's own font.
"""

import io
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullLocator

from pico.report.figures.colours import INK, MUTED, RULE

STYLE: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.titlecolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so tick choices are the same everywhere
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "axes.titlesize": 9.0,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "path.simplify": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "pico",
    "svg.image_inline": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 7.5,
}


_DIGITS = re.compile(r"(-?\d+\.\d{2})\d+")
"""Coordinates to a hundredth of a point: nobody sees more, and the page is half the size."""


def panel(
    width: float = 4.0,
    height: float = 2.8,
    *,
    left: float = 0.5,
    right: float = 0.12,
    top: float = 0.3,
    bottom: float = 0.45,
) -> tuple[Canvas, Axes]:
    """An empty panel with margins in inches; draw within `matplotlib.rc_context(STYLE)` (see `drawing`)."""
    canvas = Canvas(figsize=(width, height))
    FigureCanvasSVG(canvas)
    axes = canvas.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="y")
    axes.set_axisbelow(True)
    return canvas, axes


def drawing() -> AbstractContextManager[None]:
    """The context to draw in: `with drawing(): ...`"""
    return matplotlib.rc_context(STYLE)


def step_axis(axes: Axes, last: int) -> None:
    """Steps 0, 1, 10, ... `last` on a logarithmic axis that has room for step 0."""
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    ticks = [0, *(10**power for power in range(len(str(last))))]
    axes.set_xticks(ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.set_xlim(-0.15, last * 1.15)
    axes.set_xlabel("step")


def short_count(value: float) -> str:
    """1000 -> 1k, 2500000 -> 2.5M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def to_svg(canvas: Canvas, label: str, prefix: str, colours: Mapping[str, str]) -> str:
    """The panel as an inline `<svg>` with accessible `label`; `prefix` keeps its ids apart from other panels'."""
    buffer = io.StringIO()
    # not by savefig, which draws everything twice, the first time for nothing
    dpi, nothing = canvas.dpi, {"Date": None, "Creator": None, "Format": None, "Type": None}
    FigureCanvasSVG(canvas).print_svg(buffer, metadata=nothing)
    canvas.set_dpi(dpi)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]  # neither XML declaration nor DOCTYPE belong inside HTML
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.S)
    text = re.sub(r"<svg [^>]*>", lambda tag: re.sub(r' (?:width|height)="[^"]*"', "", tag.group()), text, count=1)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'(href="|url\()#([^")]+)', rf"\1#{prefix}-\2", text)
    text = re.sub("|".join(map(re.escape, colours)), lambda found: colours[found.group()], text)
    text = re.sub(r'\b(?:d|x|y|transform|points)="[^"]*"', lambda found: _DIGITS.sub(r"\1", found.group()), text)
    text = re.sub(r"font: ([^;\"']*?)(?:'DejaVu Sans'|&quot;DejaVu Sans&quot;)[^;\"]*", r"font: \1var(--sans)", text)
    text = re.sub(r">\s+<", "><", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label, quote=True)}" ', 1).strip()
