"""The report's figures of training and results: loss, scale, domains, benchmarks, and bands over seeds."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from pico.report.figures import colours
from pico.report.figures.drawing import Figure, Painter, count_axis, dashed, model_line, step_axis
from pico.report.inputs.dynamics import HELDOUT_SPLIT
from pico.report.inputs.suite import LOSS_BINS, Model, Suite, floats


def loss_curves(painter: Painter) -> Figure:
    """Draws training and held-out loss over log-step."""
    suite = painter.suite
    curves = [model.training for model in suite.models]
    last = int(max(curve.step.max() for curve in curves))
    every = np.concatenate([losses for curve in curves for losses in (curve.train_loss, curve.heldout_loss)])
    finite = every[np.isfinite(every)]
    limits = (finite.min() - 0.03 * np.ptp(finite), finite.max() + 0.03 * np.ptp(finite)) if len(finite) else (0, 1)

    def draw(axes: Axes, heldout: bool) -> None:
        for index, curve in enumerate(curves):
            if heldout:
                keep = np.isfinite(curve.heldout_loss)
                model_line(axes, index, curve.step[keep], curve.heldout_loss[keep])
            else:
                model_line(axes, index, *curve.smoothed, marker="")
        step_axis(axes, last)
        axes.set_ylim(limits if limits[1] > limits[0] else (limits[0] - 0.5, limits[0] + 0.5))
        axes.set_ylabel("loss (nats per token)")

    settings = suite.params.training
    return Figure(
        "loss",
        "Loss over training",
        f"Cross-entropy of the next token over optimiser steps, logarithmic, for {_models(suite)}. Training: the mean "
        f"over the steps in each of {LOSS_BINS} equal bins of log-step, of batches of {settings.batch_size} rows of "
        f"{suite.params.packing.seq_len} tokens that are the same for every model. Held-out: every "
        f"{settings.eval_every} steps, on documents that are never trained on. One run a model, so no error is given.",
        [
            painter.paint("loss-train", "Training loss over steps", draw, False, heading="Training"),
            painter.paint("loss-heldout", "Held-out loss over steps", draw, True, heading="Held-out"),
        ],
    )


def scaling(painter: Painter) -> Figure:
    """Draws held-out bits per byte against parameters, with the unigram baseline."""
    suite = painter.suite
    values = [model.last["heldout"]["all"]["bits_per_byte"] for model in suite.models]
    baseline = suite.unigram()
    count = suite.models[0].last["heldout"]["all"]["bytes"]

    def draw(axes: Axes, sizes: list[int], name: str) -> None:
        axes.plot(sizes, values, color=colours.MUTED, linewidth=0.8, zorder=1)
        for index, (size, value) in enumerate(zip(sizes, values, strict=True)):
            model_line(axes, index, np.array([size]), np.array([value]), markersize=6)
            axes.annotate(suite.models[index].name, (size, value), (0, 7), textcoords="offset points", ha="center")
        if baseline is not None:
            dashed(axes, baseline)
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
        count_axis(axes)
        axes.set_xlabel(name)
        axes.set_ylabel("held-out bits per byte")
        shown = [*values, *([baseline] if baseline is not None else [])]
        top, bottom = max(shown), min(shown)
        axes.set_ylim(bottom - 0.08 * (top - bottom or 1), top + 0.12 * (top - bottom or 1))

    total = [model.parameters for model in suite.models]
    body = [model.non_embedding_parameters for model in suite.models]
    return Figure(
        "scaling",
        "Held-out bits per byte against size",
        f"Bits per byte of the last checkpoint of each model on all {count:,} bytes of held-out text, against its "
        "number of parameters, logarithmic. The dashed line is a unigram model with add-one counts of the training "
        "tokens. All models have seen the same tokens. One run a model; all held-out text is scored, so there is no "
        "sampling error in this figure, but another seed or another split would move the points.",
        [
            painter.paint("scaling-total", "Held-out bits per byte against all parameters", draw, total, "parameters"),
            painter.paint(
                "scaling-body",
                "Held-out bits per byte against parameters without embeddings",
                draw,
                body,
                "parameters without embeddings",
            ),
        ],
    )


def domains(painter: Painter) -> Figure:
    """Draws held-out bits per byte by domain, with each domain's unigram baseline."""
    suite = painter.suite

    def draw(axes: Axes, rows: np.ndarray) -> None:
        for index, model in enumerate(suite.models):
            found = [model.last["heldout"].get(name, {}).get("bits_per_byte") for name in suite.domains]
            model_line(axes, index, floats(found), rows, linestyle="", markersize=5.5)
        axes.plot(
            floats([suite.unigram(name) for name in suite.domains]),
            rows,
            linestyle="",
            marker="|",
            markersize=11,
            markeredgewidth=1.6,
            color=colours.MUTED,
        )
        axes.set_xlabel("held-out bits per byte")

    return Figure(
        "domains",
        "Held-out bits per byte by domain",
        f"The last checkpoint of {_models(suite)} on the held-out documents of each domain; the bar is the unigram "
        "baseline of that domain. All kept held-out rows are scored (their numbers are in the table); one run a model.",
        [
            painter.domains_panel(
                "domains-all", "Held-out bits per byte of each model in each domain", suite.domains, draw
            )
        ],
        columns=1,
    )


def benchmarks(painter: Painter) -> Figure | None:
    """Draws benchmark scores over log-step with one standard error and the chance level; None without results."""
    suite = painter.suite
    if not suite.tasks:
        return None
    last = max(entry["step"] for model in suite.models for entry in model.evaluations)

    def draw(axes: Axes, task: str) -> None:
        for index, model in enumerate(suite.models):
            steps, values, errors = model.benchmark(task)
            axes.fill_between(
                steps, values - errors, values + errors, color=colours.model_colour(index), alpha=0.13, linewidth=0
            )
            model_line(axes, index, steps, values)
        if (chance := suite.chance(task)) is not None:
            dashed(axes, chance)
        step_axis(axes, last)
        axes.set_ylabel(suite.metric(task))

    limit = suite.params.evaluation.limit
    return Figure(
        "benchmarks",
        "Benchmarks over training",
        "Zero-shot scores of chosen checkpoints over optimiser steps, logarithmic. Bands are one standard error over "
        "the examples; the dashed line is the chance level. "
        + (
            f"At most {limit} examples a task are used: the first of a fixed shuffle, the same ones for every model "
            "and step."
            if limit
            else "All examples of each task are used."
        ),
        [
            painter.paint(
                f"benchmark-{index}",
                f"{task} over steps",
                draw,
                task,
                width=3.5,
                height=2.5,
                heading=f"{task}, {suite.examples(task)}",
            )
            for index, task in enumerate(suite.tasks)
        ],
        columns=3,
    )


def seed_groups(models: list[Model]) -> list[list[Model]]:
    """Returns the runs, two or more, whose data and settings are the same but for the seed; in order of the models."""
    groups: dict[str, list[Model]] = {}
    for model in models:
        if model.seedless:
            groups.setdefault(model.seedless, []).append(model)
    return [group for group in groups.values() if len(group) > 1]


def band(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the steps that all curves have, and mean, minimum and maximum at each; NaN where one has no value."""
    steps = curves[0][0]
    for other, _ in curves[1:]:
        steps = np.intersect1d(steps, other)
    values = np.array([values[np.searchsorted(own, steps)] for own, values in curves])
    return steps, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def seed_bands(painter: Painter) -> Figure | None:
    """Draws training loss and CKA to the last checkpoint of runs that differ only by seed; None without such runs."""
    groups = seed_groups(painter.suite.models)
    if not groups:
        return None
    last = int(max(model.training.step.max() for group in groups for model in group))

    def similarity(model: Model) -> tuple[np.ndarray, np.ndarray]:
        grid = model.dynamics.grid(model.dynamics.cka or "", "simple", "activations", split=HELDOUT_SPLIT)
        return np.array(grid.steps, float), grid.values.mean(axis=0) if grid.steps else np.array([])

    def draw(axes: Axes, similar: bool) -> None:
        for group in groups:
            curves = [similarity(model) if similar else model.training.smoothed for model in group]
            if any(not len(steps) for steps, _ in curves):
                continue
            steps, mean, low, high = band(curves)
            colour = colours.model_colour(painter.suite.models.index(group[0]))
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(steps, mean, color=colour, linewidth=1.4)
        step_axis(axes, last)
        axes.set_ylabel("CKA to final" if similar else "loss (nats per token)")

    names = "; ".join(", ".join(model.name for model in group) for group in groups)
    return Figure(
        "seeds",
        "What the seed changes",
        f"Runs that differ only by seed ({names}): the mean, and as a band the least and the largest value over "
        "the runs, over steps, logarithmic. Left: training loss, the mean in bins of log-step. Right: CKA of the "
        "activations to the last checkpoint, the mean over layers and modules. Colours are those of each group's "
        "first run.",
        [
            painter.paint("seeds-loss", "Training loss over steps, a band over seeds", draw, False),
            painter.paint("seeds-cka", "CKA to final over steps, a band over seeds", draw, True),
        ],
    )


def _models(suite: Suite) -> str:
    count = len(suite.models)
    return "the model" if count == 1 else f"the {count} models"
