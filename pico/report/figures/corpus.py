"""The figures of the data page: domain mix, lengths of documents, bytes per token."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from pico.report.figures import colours
from pico.report.figures.drawing import Entry, Figure, Painter, count_axis

STAGES = (
    ("bytes_read", "bytes fetched", "●"),
    ("bytes", "bytes used", "■"),
    ("train_tokens", "training tokens", "▲"),
)
"""Keys of provenance.json whose shares by domain are drawn, their labels, and their signs."""
MARKERS = {"●": "o", "■": "s", "▲": "^"}


def data_figures(painter: Painter) -> list[Figure]:
    """Returns the figures whose data were counted, in the order of the page."""
    provenance, profile = painter.suite.provenance.get("domains", {}), painter.suite.profile.get("domains", {})
    found = [_mix(painter, provenance)] if provenance else []
    return [*found, *([_lengths(painter, profile), _fertility(painter, profile)] if profile else [])]


def _mix(painter: Painter, domains: dict[str, dict[str, Any]]) -> Figure:
    names = sorted(domains)
    stages = [(key, label, sign) for key, label, sign in STAGES if all(key in domains[name] for name in names)]
    shown = [colours.step_colour(place) for place in np.linspace(0.2, 0.8, len(stages))]

    def draw(axes: Axes, rows: np.ndarray) -> None:
        for place, (key, _, sign) in enumerate(stages):
            values = np.array([domains[name][key] for name in names], float)
            shares = 100 * values / max(1.0, values.sum())
            axes.plot(shares, rows, linestyle="", marker=MARKERS[sign], markersize=6, markeredgewidth=0,
                      color=shown[place])  # fmt: skip
        axes.set_xlim(left=0)
        axes.set_xlabel("share of all domains (%)")

    return Figure(
        "data-mix",
        "Domain mix",
        "Each domain's share of the text that was fetched, of the text that is used (after duplicates, filters and the "
        "limit of packing.max_domain_bytes), and of the tokens that are trained on.",
        [painter.domains_panel("data-mix-all", "Share of each domain", names, draw)],
        columns=1,
        entries=[Entry(colour, label, sign) for colour, (_, label, sign) in zip(shown, stages, strict=True)],
    )


def _lengths(painter: Painter, domains: dict[str, dict[str, Any]]) -> Figure:
    width = 2 ** (1 / painter.suite.profile["length_bins_per_octave"])
    edges = [low for entry in domains.values() for low, _ in entry["lengths"]]
    limits = (min(edges) / width, max(edges) * width**2)
    colour = colours.step_colour(0.6)

    def draw(axes: Axes, entry: dict[str, Any]) -> None:
        lows, counts = (np.array(column, float) for column in zip(*entry["lengths"], strict=True))
        places = np.round(np.log(lows / lows[0]) / np.log(width)).astype(int)
        shares = np.zeros(places[-1] + 1)
        shares[places] = 100 * counts / counts.sum()
        # as one outline: between bars of their own, renderers leave gaps
        axes.stairs(shares, lows[0] * width ** np.arange(len(shares) + 1), fill=True, color=colour, linewidth=0)
        axes.axvline(median_length(entry, width), color=colours.INK, linewidth=0.9, dashes=(3, 2))
        axes.set_xscale("log")
        axes.set_xlim(*limits)
        count_axis(axes)
        axes.set_xlabel("bytes")
        axes.set_ylabel("documents (%)")

    panels = [
        painter.paint(
            f"data-lengths-{number}",
            f"Distribution of document lengths in {name}",
            draw,
            entry,
            width=3.2,
            height=2.1,
            heading=f"{name}, n = {entry['used_documents']:,}",
        )
        for number, (name, entry) in enumerate(sorted(domains.items()))
        if entry["lengths"]
    ]
    return Figure(
        "data-lengths",
        "Lengths of documents",
        "UTF-8 bytes of the documents that are used, in bins of a quarter of an octave; the dashed line is the median.",
        panels,
        legend="",
        columns=3,
    )


def _fertility(painter: Painter, domains: dict[str, dict[str, Any]]) -> Figure:
    names = sorted(name for name, entry in domains.items() if entry["fertility"])
    colour = colours.step_colour(0.6)

    def draw(axes: Axes, rows: np.ndarray) -> None:
        for row, name in zip(rows, names, strict=True):
            low, quarter, middle, three, high = np.percentile(domains[name]["fertility"], [5, 25, 50, 75, 95])
            axes.plot([low, high], [row, row], color=colour, linewidth=1.1)
            axes.plot([quarter, three], [row, row], color=colour, linewidth=5, solid_capstyle="butt", alpha=0.55)
            axes.plot([middle], [row], color=colours.INK, marker="|", markersize=11, markeredgewidth=1.6)
        axes.set_xlabel("bytes per token")

    count = max((len(domains[name]["fertility"]) for name in names), default=0)
    return Figure(
        "data-fertility",
        "Bytes per token",
        f"Of the beginnings (at most 4,000 characters) of at most {count:,} documents a domain, drawn by "
        "hash: median (mark), middle half (bar), and 5th to 95th percentile (line). The ratio of all text to all "
        "tokens is in the table above.",
        [painter.domains_panel("data-fertility-all", "Bytes per token by domain", names, draw)],
        legend="",
        columns=1,
    )


def median_length(entry: dict[str, Any], width: float) -> float:
    """Returns the median of a histogram of lengths, as the middle (on a log scale) of the bin that holds it."""
    lows, counts = zip(*entry["lengths"], strict=True)
    place = int(np.searchsorted(np.cumsum(counts), sum(counts) / 2))
    return float(lows[place] * width**0.5)
