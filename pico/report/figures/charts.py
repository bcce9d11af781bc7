"""The report's figures of training and results: loss, scale, domains, benchmarks. Each has panels and a caption."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pico.report.figures import colours
from pico.report.figures.pixels import to_pixels
from pico.report.figures.svg import drawing, panel, short_count, step_axis, to_svg
from pico.report.inputs.data import Model, Suite

LOSS_BINS = 80
"""Points of a smoothed curve: equal bins of log-step."""


@dataclass(frozen=True)
class Panel:
    """One picture: the SVG, and a heading where the figure has several."""

    svg: str
    heading: str = ""
    size: tuple[float, float] = (4.0, 2.7)
    """Width and height in inches."""
    pixels: np.ndarray | None = None
    """(height, width, 3), where the painter makes files."""


@dataclass(frozen=True)
class Entry:
    """A line of a legend: a placeholder of pico.report.figures.colours, and what it stands for."""

    colour: str
    label: str
    sign: str = ""
    """A marker in place of a line."""


@dataclass(frozen=True)
class Figure:
    """Panels that share a caption. `legend`: "models", "layers" or "" (none)."""

    key: str
    title: str
    caption: str
    panels: list[Panel]
    legend: str = "models"
    colour_bars: list["ColourBar"] = field(default_factory=list)
    columns: int = 2
    """Panels side by side where the screen has room."""
    entries: list[Entry] = field(default_factory=list)
    """A legend of its own, in place of that of models or layers."""
    says: str = ""
    """What is seen, in a plain sentence worked out from the data; stands before the picture."""


@dataclass(frozen=True)
class ColourBar:
    """The key of a heat map's colours: CSS colours from low to high, and what the ends mean."""

    name: str
    colours: list[str]
    low: str
    high: str


class Painter:
    """Draws panels of one suite: knows its colours, and gives every panel its own ids."""

    def __init__(self, suite: Suite, *, pixels: bool = False) -> None:
        """pixels: whether panels are drawn for PNG files too, which takes as long again."""
        self.suite = suite
        self.layers = max(model.config["n_layers"] for model in suite.models)
        self.colours = colours.replacements(len(suite.models), self.layers)
        self._plain = colours.plain("light", len(suite.models), self.layers) if pixels else None

    @property
    def columns(self) -> int:
        """Small multiples side by side: one a model, so that rows compare models."""
        return min(4, max(2, len(self.suite.models)))

    def paint(
        self,
        key: str,
        label: str,
        draw: Callable[[Axes], None],
        *,
        width: float = 4.0,
        height: float = 2.7,
        left: float = 0.5,
        heading: str = "",
    ) -> Panel:
        """One panel; `draw` gets empty axes. `label` says in words what is shown, for those who don't see it."""
        with drawing():
            canvas, axes = panel(width, height, left=left, top=0.12)
            draw(axes)
            svg = to_svg(canvas, label, key, self.colours)
            pixels = to_pixels(canvas, self._plain) if self._plain else None
        return Panel(svg, heading, (width, height), pixels)

    def legend(self, figure: Figure) -> list[Entry]:
        """What the colours of a figure stand for."""
        if figure.entries or not figure.legend:
            return figure.entries
        if figure.legend == "layers":
            return [Entry(colours.layer_colour(layer), f"layer {layer}") for layer in range(self.layers)]
        signs = colours.MARKER_SIGNS
        return [
            Entry(colours.model_colour(index), model.name, signs[index % len(signs)])
            for index, model in enumerate(self.suite.models)
        ]


def model_line(axes: Axes, index: int, x: np.ndarray, y: np.ndarray, *, markers: bool = True) -> None:
    """A line in the colour, width and marker of the `index`-th model; NaN leaves gaps."""
    axes.plot(
        x,
        y,
        color=colours.model_colour(index),
        linewidth=colours.line_width(index),
        solid_capstyle="round",
        marker=colours.MARKERS[index % len(colours.MARKERS)] if markers else "",
        markersize=3.4,
        markeredgewidth=0,
    )


def binned(steps: np.ndarray, values: np.ndarray, bins: int = LOSS_BINS) -> tuple[np.ndarray, np.ndarray]:
    """Mean step and value in equal bins of log-step; values that are not finite don't count, nor do empty bins."""
    keep = np.isfinite(values) & (steps > 0)
    steps, values = steps[keep], values[keep]
    if not len(steps):
        return steps, values
    edges = np.geomspace(1, steps.max() + 1, bins + 1)
    places = np.digitize(steps, edges)
    order = np.unique(places)
    return (
        np.array([steps[places == place].mean() for place in order]),
        np.array([values[places == place].mean() for place in order]),
    )


def loss_curves(painter: Painter) -> Figure:
    """Training and held-out loss over log-step."""
    suite = painter.suite
    last = int(max(model.training.step.max() for model in suite.models))
    every = [
        curve[np.isfinite(curve)]
        for model in suite.models
        for curve in (model.training.train_loss, model.training.heldout_loss)
    ]
    finite = np.concatenate(every) if every else np.array([0.0, 1.0])
    limits = (finite.min() - 0.03 * np.ptp(finite), finite.max() + 0.03 * np.ptp(finite)) if len(finite) else (0, 1)

    def draw(axes: Axes, heldout: bool) -> None:
        for index, model in enumerate(suite.models):
            curve = model.training
            if heldout:
                keep = np.isfinite(curve.heldout_loss)
                model_line(axes, index, curve.step[keep], curve.heldout_loss[keep])
            else:
                model_line(axes, index, *binned(curve.step, curve.train_loss), markers=False)
        step_axis(axes, last)
        axes.set_ylim(limits if limits[1] > limits[0] else (limits[0] - 0.5, limits[0] + 0.5))
        axes.set_ylabel("loss (nats per token)")

    return Figure(
        "loss",
        "Loss over training",
        f"Cross-entropy of the next token over optimiser steps, logarithmic, for {_models(suite)}. Training: the mean "
        f"over "
        f"the steps in each of {LOSS_BINS} equal bins of log-step, of batches of {suite.params.training.batch_size} "
        f"rows of "
        f"{suite.params.packing.seq_len} tokens that are the same for every model. Held-out: every "
        f"{suite.params.training.eval_every} steps, on documents that are never trained on. One run a model, so no "
        "error is given.",
        [
            painter.paint("loss-train", "Training loss over steps", lambda axes: draw(axes, False), heading="Training"),
            painter.paint(
                "loss-heldout", "Held-out loss over steps", lambda axes: draw(axes, True), heading="Held-out"
            ),
        ],
    )


def scaling(painter: Painter) -> Figure:
    """Held-out bits per byte against parameters, with the unigram baseline."""
    suite = painter.suite
    values = [model.last["heldout"]["all"]["bits_per_byte"] for model in suite.models]
    baseline = suite.unigram()
    count = suite.models[0].last["heldout"]["all"]["bytes"]

    def draw(axes: Axes, sizes: list[int], name: str) -> None:
        axes.plot(sizes, values, color=colours.MUTED, linewidth=0.8, zorder=1)
        for index, (size, value) in enumerate(zip(sizes, values, strict=True)):
            model_line(axes, index, np.array([size]), np.array([value]))
            axes.lines[-1].set_markersize(6)
            axes.annotate(suite.models[index].name, (size, value), (0, 7), textcoords="offset points", ha="center")
        if baseline is not None:
            axes.axhline(baseline, color=colours.MUTED, linewidth=0.9, dashes=(4, 2))
            axes.annotate(
                "unigram baseline",
                (0.99, baseline),
                (0, -9),
                textcoords="offset points",
                ha="right",
                xycoords=("axes fraction", "data"),
            )
        axes.set_xscale("log")
        axes.set_xlim(min(sizes) / 1.7, max(sizes) * 1.7)
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
        axes.set_xlabel(name)
        axes.set_ylabel("held-out bits per byte")
        shown = [*values, *([baseline] if baseline is not None else [])]
        top, bottom = max(shown), min(shown)
        axes.set_ylim(bottom - 0.08 * (top - bottom or 1), top + 0.12 * (top - bottom or 1))

    return Figure(
        "scaling",
        "Held-out bits per byte against size",
        f"Bits per byte of the last checkpoint of each model on all {count:,} bytes of held-out text, against its "
        f"number of "
        "parameters, logarithmic. The dashed line is a unigram model with add-one counts of the training tokens. "
        "All models have seen the same tokens. One run a model; all held-out text is scored, so there is no sampling "
        "error "
        "in this figure, but another seed or another split would move the points.",
        [
            painter.paint(
                "scaling-total",
                "Held-out bits per byte against all parameters",
                lambda axes: draw(axes, [model.parameters for model in suite.models], "parameters"),
            ),
            painter.paint(
                "scaling-body",
                "Held-out bits per byte against parameters without embeddings",
                lambda axes: draw(
                    axes, [model.non_embedding_parameters for model in suite.models], "parameters without embeddings"
                ),
            ),
        ],
    )


def domains(painter: Painter) -> Figure:
    """Held-out bits per byte by domain, with each domain's unigram baseline."""
    suite = painter.suite
    names = suite.domains
    rows = np.arange(len(names))[::-1]

    def draw(axes: Axes) -> None:
        for index, model in enumerate(suite.models):
            found = [model.last["heldout"].get(name, {}).get("bits_per_byte") for name in names]
            axes.plot(
                _floats(found),
                rows,
                linestyle="",
                color=colours.model_colour(index),
                markersize=5.5,
                marker=colours.MARKERS[index % len(colours.MARKERS)],
                markeredgewidth=0,
            )
        axes.plot(
            _floats([suite.unigram(name) for name in names]),
            rows,
            linestyle="",
            marker="|",
            markersize=11,
            markeredgewidth=1.6,
            color=colours.MUTED,
        )
        axes.set_yticks(rows, names)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xlabel("held-out bits per byte")

    return Figure(
        "domains",
        "Held-out bits per byte by domain",
        f"The last checkpoint of {_models(suite)} on the held-out documents of each domain; the bar is the unigram "
        f"baseline of that "
        "domain. All kept held-out rows are scored (their numbers are in the table); one run a model.",
        [
            painter.paint(
                "domains-all",
                "Held-out bits per byte of each model in each domain",
                draw,
                width=9.2,
                height=0.75 + 0.3 * len(names),
                left=1.2,
            )
        ],
        columns=1,
    )


def benchmarks(painter: Painter) -> Figure | None:
    """Benchmark scores over log-step with one standard error and the chance level; None without results."""
    suite = painter.suite
    if not suite.tasks:
        return None
    last = max(entry["step"] for model in suite.models for entry in model.evaluations)

    def draw(axes: Axes, task: str) -> None:
        for index, model in enumerate(suite.models):
            steps, values, errors = benchmark_curve(model, task)
            axes.fill_between(
                steps, values - errors, values + errors, color=colours.model_colour(index), alpha=0.13, linewidth=0
            )
            model_line(axes, index, steps, values)
        if (chance := suite.chance(task)) is not None:
            axes.axhline(chance, color=colours.MUTED, linewidth=0.9, dashes=(4, 2))
        step_axis(axes, last)
        axes.set_ylabel(metric_of(suite, task))

    limit = suite.params.evaluation.limit
    panels = [
        painter.paint(
            f"benchmark-{index}",
            f"{task} over steps",
            lambda axes, task=task: draw(axes, task),  # type: ignore[misc]
            width=3.5,
            height=2.5,
            heading=f"{task}, {examples_of(suite, task)}",
        )
        for index, task in enumerate(suite.tasks)
    ]
    return Figure(
        "benchmarks",
        "Benchmarks over training",
        "Zero-shot scores of chosen checkpoints over optimiser steps, logarithmic. Bands are one standard error over "
        "the examples; "
        "the dashed line is the chance level. "
        + (
            f"At most {limit} examples a task are used: the first of a fixed shuffle, the same ones for every model "
            f"and step."
            if limit
            else "All examples of each task are used."
        ),
        panels,
        columns=3,
    )


def benchmark_curve(model: Model, task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, values and standard errors of one task; NaN for missing values, 0 for missing errors."""
    found = [(entry["step"], entry["benchmarks"][task]) for entry in model.evaluations if task in entry["benchmarks"]]
    values = _floats([result["value"] for _, result in found])
    errors = np.nan_to_num(_floats([result["stderr"] for _, result in found]))
    return np.array([step for step, _ in found], dtype=float), values, errors


def metric_of(suite: Suite, task: str) -> str:
    """The metric of a task's results."""
    return next((m.last["benchmarks"][task]["metric"] for m in suite.models if task in m.last["benchmarks"]), "score")


def examples_of(suite: Suite, task: str) -> str:
    """How many examples the last checkpoints were scored on: `n = 100`."""
    counts = sorted({m.last["benchmarks"][task]["n"] for m in suite.models if task in m.last["benchmarks"]})
    return f"n = {', '.join(map(str, counts))}" if counts else "not in the last checkpoint"


def _floats(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _models(suite: Suite) -> str:
    count = len(suite.models)
    return "the model" if count == 1 else f"the {count} models"
