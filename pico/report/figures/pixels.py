"""The same panels as pixels: the placeholder colours replaced, on white, for papers and slides."""

import io
from collections.abc import Mapping

import numpy as np
from matplotlib import colors
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from PIL import Image

DPI = 120
SETTERS = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")


def to_pixels(canvas: Canvas, plain: Mapping[str, str]) -> np.ndarray:
    """(height, width, 3) uint8 at DPI: the panel as it was drawn, with `plain` (placeholder -> colour) put in."""
    for artist in canvas.findobj():
        _recolour(artist, plain)
    before, canvas.dpi = canvas.dpi, DPI
    try:
        agg = FigureCanvasAgg(canvas)
        agg.draw()
        drawn = np.asarray(agg.buffer_rgba())
        # onto white: the canvas is see-through, since the page lends it its own background
        share = drawn[..., 3:].astype(np.float32) / 255
        return np.round(drawn[..., :3] * share + 255 * (1 - share)).astype(np.uint8)
    finally:
        canvas.dpi = before


def _recolour(artist: Artist, plain: Mapping[str, str]) -> None:
    for name in SETTERS:
        get, put = getattr(artist, f"get_{name}", None), getattr(artist, f"set_{name}", None)
        if get is None or put is None:
            continue
        found = get()
        if isinstance(found, str) and found == "auto":
            continue
        try:
            # collections have one colour an element; pictures give them one in all
            rows = np.atleast_2d(colors.to_rgba_array(found))
        except (ValueError, TypeError):  # "none", or something else that is no colour
            continue
        if len(rows) and (colour := plain.get(colors.to_hex(rows[0]))):
            put(colors.to_rgba(colour, rows[0][3]))


def write_png(pixels: np.ndarray) -> bytes:
    """The bytes of a PNG file: no time, no name of a program in it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4, dpi=(DPI, DPI))
    return buffer.getvalue()
