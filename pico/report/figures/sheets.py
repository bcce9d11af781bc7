"""Pictures as files: every figure of the report as one SVG, light or dark as its reader is, and one PNG on white.

A sheet is laid out once, in points: title, legend, panels in rows with their headings. The SVG nests the page's own
panels; the PNG is that SVG, rendered by resvg in the colours of the light page and in the fonts that matplotlib ships.
No font of the machine is looked at, so equal figures give equal bytes.
"""

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

import matplotlib
import resvg_py

from pico.errors import PicoError
from pico.report.figures import colours
from pico.report.figures.drawing import Entry, Figure, Painter

MARGIN, GAP, TITLE, LINE, HEADING = 12.0, 14.0, 20.0, 15.0, 14.0
"""Points: around the sheet, between panels, and heights of the title, a line of the legend, and a panel's heading."""
SIZES = {"title": 11.0, "legend": 8.5, "heading": 8.5}
WEIGHTS = {"title": 600, "legend": 400, "heading": 600}
CHARACTER = 0.62
"""Width allowed for a character, over the size of the type: more than any font of the lists here needs."""
SANS = "system-ui, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"
DPI = 120
FONT = "DejaVu Sans"
FONT_FILES = [f"{matplotlib.get_data_path()}/fonts/ttf/{name}.ttf" for name in ("DejaVuSans", "DejaVuSans-Bold")]


def write_sheets(painter: Painter, figures: list[Figure], folder: Path) -> None:
    """Writes <key>.svg and <key>.png of each figure into a folder that is about to be published.

    Raises PicoError where matplotlib was installed without its fonts.
    """
    if missing := [file for file in FONT_FILES if not Path(file).is_file()]:  # the renderer would leave out all text
        raise PicoError(f"matplotlib lacks {', '.join(missing)}", mend="install the wheel: pip install matplotlib")
    light, dark = (
        colours.PAGE[mode] | colours.values(mode, len(painter.suite.models), painter.suite.layers)
        for mode in ("light", "dark")
    )
    style = (
        f":root {{ --sans: {SANS}; }} :root {{ {colours.declarations(light)} }} "
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {colours.declarations(dark)} }} }} "
        "svg image { image-rendering: pixelated; }"
    )
    for figure in figures:
        text = sheet_svg(painter, figure, style)
        (folder / f"{figure.key}.svg").write_text(text, encoding="utf-8")
        (folder / f"{figure.key}.png").write_bytes(to_png(text, light | {"--paper": "#ffffff"}))


def to_png(svg: str, variables: dict[str, str]) -> bytes:
    """Renders an SVG at DPI, with the values of its CSS variables put in, which the renderer doesn't know.

    Text is set in FONT, on every machine. Raises KeyError for a variable without a value.
    """
    known = {**variables, "--sans": f"'{FONT}'"}
    plain = re.sub(r"var\((--[a-z0-9-]+)\)", lambda found: known[found[1]], svg)
    return resvg_py.svg_to_bytes(
        svg_string=plain,
        dpi=DPI,
        background=known["--paper"],
        skip_system_fonts=True,
        font_files=FONT_FILES,
        font_family=FONT,
        sans_serif_family=FONT,
    )


def sheet_svg(painter: Painter, figure: Figure, style: str) -> str:
    """Returns a figure as an SVG file: title, legend, colour bars, and the panels below; `style` is its CSS."""
    columns = min(figure.columns, len(figure.panels))
    widest = max(panel.size[0] for panel in figure.panels) * 72
    tallest = max(panel.size[1] for panel in figure.panels) * 72
    headed = HEADING if any(panel.heading for panel in figure.panels) else 0.0
    titled = CHARACTER * SIZES["title"] * len(figure.title)
    width = 2 * MARGIN + max(columns * widest + (columns - 1) * GAP, titled)
    bars, texts, top = [], [_text(MARGIN, MARGIN + 11, figure.title, "title")], MARGIN + TITLE
    for line in _legend_lines(painter.legend(figure), width - 2 * MARGIN):
        for x, entry in line:
            if entry.sign:
                texts.append(_text(MARGIN + x, top + 9, entry.sign, "legend", entry.colour))
            else:
                bars.append(_bar(MARGIN + x, top + 5, 12, 2.2, entry.colour))
            texts.append(_text(MARGIN + x + 16, top + 9, entry.label, "legend"))
        top += LINE
    for bar in figure.colour_bars:
        shift = 6 + CHARACTER * SIZES["legend"] * len(bar.low)
        texts.append(_text(MARGIN, top + 9, bar.low, "legend"))
        step = 120 / len(bar.colours)
        bars += [_bar(MARGIN + shift + at * step, top + 2, step + 0.3, 8, one) for at, one in enumerate(bar.colours)]
        texts.append(_text(MARGIN + shift + 126, top + 9, bar.high, "legend"))
        top += LINE
    panels = []
    for index, panel in enumerate(figure.panels):
        row, column = divmod(index, columns)
        x, y = MARGIN + column * (widest + GAP), top + row * (tallest + headed + GAP)
        if panel.heading:
            texts.append(_text(x, y + 9, panel.heading, "heading"))
        size = f'width="{72 * panel.size[0]:.2f}" height="{72 * panel.size[1]:.2f}"'
        # as on the page, a label beside long numbers may reach over the panel's edge
        place = f'<svg x="{x:.2f}" y="{y + headed:.2f}" {size} overflow="visible" '
        panels.append(panel.svg.replace("<svg ", place, 1))
    rows = -(-len(figure.panels) // columns)
    height = top + rows * (tallest + headed + GAP) - GAP + MARGIN
    opening = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'width="{width:.1f}pt" height="{height:.1f}pt" viewBox="0 0 {width:.1f} {height:.1f}">'
        f"<title>{escape(figure.title)}</title><desc>{escape(figure.caption)}</desc><style>{style}</style>"
        '<rect width="100%" height="100%" style="fill: var(--paper)"/>'
    )
    return "".join([opening, *bars, *texts, *panels, "</svg>\n"])


def _legend_lines(entries: list[Entry], room: float) -> Iterator[list[tuple[float, Entry]]]:
    """Yields lines of (x, entry), broken where there is no room left."""
    line: list[tuple[float, Entry]] = []
    x = 0.0
    for entry in entries:
        wide = 16 + CHARACTER * SIZES["legend"] * len(entry.label) + 12
        if line and x + wide > room:
            yield line
            line, x = [], 0.0
        line.append((x, entry))
        x += wide
    if line:
        yield line


def _text(x: float, y: float, text: str, kind: str, colour: str = "var(--ink)") -> str:
    font = f"font: {WEIGHTS[kind]} {SIZES[kind]}px var(--sans); fill: {colour}"
    return f'<text x="{x:.2f}" y="{y:.2f}" style="{font}">{escape(text)}</text>'


def _bar(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" style="fill: {colour}"/>'
