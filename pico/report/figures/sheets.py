"""Pictures as files: every figure of the report as one SVG, light or dark as its reader is, and one PNG on white.

A sheet is laid out once, in points: title, legend, panels in rows with their headings. The SVG nests the page's own
panels; the PNG pastes the same panels as pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle

from pico.report.figures import colours
from pico.report.figures.charts import Figure, Painter, Panel
from pico.report.figures.pixels import DPI, write_png
from pico.report.figures.svg import drawing

MARGIN, GAP, TITLE, LINE, HEADING = 12.0, 14.0, 20.0, 15.0, 14.0
"""Points: around the sheet, between panels, and heights of the title, a line of the legend, and a panel's heading."""
SIZES = {"title": 11.0, "legend": 8.5, "heading": 8.5}
CHARACTER = 0.62
"""Width allowed for a character, over the size of the type: more than any font of the lists here needs."""


@dataclass(frozen=True)
class _Text:
    x: float
    y: float
    text: str
    kind: str
    colour: str = colours.INK


@dataclass(frozen=True)
class _Bar:
    x: float
    y: float
    width: float
    height: float
    colour: str


@dataclass(frozen=True)
class _Sheet:
    """Everything on a sheet, in points from its top left corner."""

    width: float
    height: float
    texts: list[_Text]
    bars: list[_Bar]
    panels: list[tuple[float, float, Panel]]


def write_sheets(painter: Painter, figures: list[Figure], folder: Path) -> None:
    """Writes <key>.svg and <key>.png of each figure into a folder that is about to be published.

    The painter must have been told to draw pixels.
    """
    for figure in figures:
        sheet = _lay_out(painter, figure)
        (folder / f"{figure.key}.svg").write_text(_svg(painter, figure, sheet), encoding="utf-8")
        (folder / f"{figure.key}.png").write_bytes(_png(painter, sheet))


def _lay_out(painter: Painter, figure: Figure) -> _Sheet:
    columns = min(figure.columns, len(figure.panels))
    widest = max(panel.size[0] for panel in figure.panels) * 72
    tallest = max(panel.size[1] for panel in figure.panels) * 72
    headed = HEADING if any(panel.heading for panel in figure.panels) else 0.0
    titled = CHARACTER * SIZES["title"] * len(figure.title)
    width = 2 * MARGIN + max(columns * widest + (columns - 1) * GAP, titled)
    texts, bars, top = [_Text(MARGIN, MARGIN + 11, figure.title, "title")], [], MARGIN + TITLE
    for line in _legend_lines(painter, figure, width - 2 * MARGIN):
        for x, colour, sign, label in line:
            if sign:
                texts.append(_Text(MARGIN + x, top + 9, sign, "legend", colour))
            else:
                bars.append(_Bar(MARGIN + x, top + 5, 12, 2.2, colour))
            texts.append(_Text(MARGIN + x + 16, top + 9, label, "legend"))
        top += LINE
    for bar in figure.colour_bars:
        shift = 6 + CHARACTER * SIZES["legend"] * len(bar.low)
        texts.append(_Text(MARGIN, top + 9, bar.low, "legend"))
        step = 120 / len(bar.colours)
        bars += [
            _Bar(MARGIN + shift + at * step, top + 2, step + 0.3, 8, colour) for at, colour in enumerate(bar.colours)
        ]
        texts.append(_Text(MARGIN + shift + 126, top + 9, bar.high, "legend"))
        top += LINE
    panels = []
    for index, panel in enumerate(figure.panels):
        row, column = divmod(index, columns)
        x, y = MARGIN + column * (widest + GAP), top + row * (tallest + headed + GAP)
        if panel.heading:
            texts.append(_Text(x, y + 9, panel.heading, "heading"))
        panels.append((x, y + headed, panel))
    rows = -(-len(figure.panels) // columns)
    return _Sheet(width, top + rows * (tallest + headed + GAP) - GAP + MARGIN, texts, bars, panels)


def _legend_lines(painter: Painter, figure: Figure, room: float) -> Iterator[list[tuple[float, str, str, str]]]:
    """Lines of (x, colour, sign, label), broken where there is no room left."""
    line: list[tuple[float, str, str, str]] = []
    x = 0.0
    for entry in painter.legend(figure):
        wide = 16 + CHARACTER * SIZES["legend"] * len(entry.label) + 12
        if line and x + wide > room:
            yield line
            line, x = [], 0.0
        line.append((x, entry.colour, entry.sign, entry.label))
        x += wide
    if line:
        yield line


def _svg(painter: Painter, figure: Figure, sheet: _Sheet) -> str:
    def colour(one: str) -> str:
        return painter.colours.get(one, one)

    weights = {"title": 600, "heading": 600, "legend": 400}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'width="{sheet.width:.1f}pt" height="{sheet.height:.1f}pt" '
        f'viewBox="0 0 {sheet.width:.1f} {sheet.height:.1f}">',
        f"<title>{escape(figure.title)}</title><desc>{escape(figure.caption)}</desc>",
        f"<style>{colours.standalone(len(painter.suite.models), painter.layers)} "
        "svg image { image-rendering: pixelated; }</style>",
        '<rect width="100%" height="100%" style="fill: var(--paper)"/>',
    ]
    parts += [
        f'<rect x="{bar.x:.2f}" y="{bar.y:.2f}" width="{bar.width:.2f}" height="{bar.height:.2f}" '
        f'style="fill: {colour(bar.colour)}"/>'
        for bar in sheet.bars
    ]
    parts += [
        f'<text x="{one.x:.2f}" y="{one.y:.2f}" style="font: {weights[one.kind]} {SIZES[one.kind]}px var(--sans); '
        f'fill: {colour(one.colour)}">{escape(one.text)}</text>'
        for one in sheet.texts
    ]
    for x, y, panel in sheet.panels:
        place = f'<svg x="{x:.2f}" y="{y:.2f}" width="{72 * panel.size[0]:.2f}" height="{72 * panel.size[1]:.2f}" '
        parts.append(panel.svg.replace("<svg ", place, 1))
    return "".join([*parts, "</svg>\n"])


def _png(painter: Painter, sheet: _Sheet) -> bytes:
    plain = colours.plain("light", len(painter.suite.models), painter.layers)
    with drawing():
        canvas = Canvas(figsize=(sheet.width / 72, sheet.height / 72), dpi=DPI, facecolor="white")
        agg = FigureCanvasAgg(canvas)
        for bar in sheet.bars:
            low = 1 - (bar.y + bar.height) / sheet.height
            wide, high = bar.width / sheet.width, bar.height / sheet.height
            fill = plain.get(bar.colour, bar.colour)
            canvas.add_artist(Rectangle((bar.x / sheet.width, low), wide, high, facecolor=fill, linewidth=0))
        for one in sheet.texts:
            weight = "normal" if one.kind == "legend" else "bold"
            place = (one.x / sheet.width, 1 - one.y / sheet.height)
            colour = plain.get(one.colour, one.colour)
            size = SIZES[one.kind] * 0.96
            canvas.text(*place, one.text, fontsize=size, fontweight=weight, color=colour, parse_math=False)
        agg.draw()
        pixels = np.array(agg.buffer_rgba())[..., :3]
    for x, y, panel in sheet.panels:
        assert panel.pixels is not None, "the painter was not told to draw pixels"
        top, left = round(y * DPI / 72), round(x * DPI / 72)
        height, width = (
            min(panel.pixels.shape[0], pixels.shape[0] - top),
            min(panel.pixels.shape[1], pixels.shape[1] - left),
        )
        pixels[top : top + height, left : left + width] = panel.pixels[:height, :width]
    return write_png(pixels)
