"""Bands over seeds: runs that differ by nothing but the seed, drawn as their mean and range."""

from itertools import groupby

import numpy as np
from matplotlib.axes import Axes

from pico.report.figures import colours
from pico.report.figures.charts import Figure, Painter, binned
from pico.report.figures.similarity import SPLIT, cka_metric
from pico.report.figures.svg import step_axis
from pico.report.inputs.data import Model


def seed_groups(models: list[Model]) -> list[list[Model]]:
    """The runs, two or more, whose data and settings are the same but for the seed; in order of the models."""
    known = [model for model in models if model.seedless]
    found = [list(group) for _, group in groupby(sorted(known, key=_identity), key=_identity)]
    groups = [sorted(group, key=models.index) for group in found if len(group) > 1]
    return sorted(groups, key=lambda group: models.index(group[0]))


def band(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps that all curves have, and the mean, the least and the largest value at each; NaN where one has none."""
    steps = curves[0][0]
    for other, _ in curves[1:]:
        steps = np.intersect1d(steps, other)
    values = np.array([values[np.searchsorted(own, steps)] for own, values in curves])
    return steps, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def seed_bands(painter: Painter) -> list[Figure]:
    """Training loss and CKA to the last checkpoint of each group of seeds; nothing where every run is of its own."""
    groups = seed_groups(painter.suite.models)
    if not groups:
        return []
    last = int(max(model.training.step.max() for group in groups for model in group))

    def draw(axes: Axes, similar: bool) -> None:
        for group in groups:
            curves = [_similarity(model) if similar else _loss(model) for model in group]
            if any(not len(steps) for steps, _ in curves):
                continue
            steps, mean, low, high = band(curves)
            colour = colours.model_colour(painter.suite.models.index(group[0]))
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(steps, mean, color=colour, linewidth=1.4)
        step_axis(axes, last)
        axes.set_ylabel("CKA to final" if similar else "loss (nats per token)")

    names = "; ".join(", ".join(model.name for model in group) for group in groups)
    return [
        Figure(
            "seeds",
            "What the seed changes",
            f"Runs that differ only by seed ({names}): the mean, and as a band the least and the largest value over "
            "the runs, over steps, logarithmic. Left: training loss, the mean in bins of log-step. Right: CKA of the "
            "activations to the last checkpoint, the mean over layers and modules. Colours are those of each group's "
            "first run.",
            [
                painter.paint(
                    "seeds-loss", "Training loss over steps, a band over seeds", lambda axes: draw(axes, False)
                ),
                painter.paint("seeds-cka", "CKA to final over steps, a band over seeds", lambda axes: draw(axes, True)),
            ],
        )
    ]


def _identity(model: Model) -> str:
    return model.seedless


def _loss(model: Model) -> tuple[np.ndarray, np.ndarray]:
    return binned(model.training.step, model.training.train_loss)


def _similarity(model: Model) -> tuple[np.ndarray, np.ndarray]:
    grid = model.dynamics.grid(cka_metric(model) or "", "simple", "activations", split=SPLIT)
    return np.array(grid.steps, float), grid.values.mean(axis=0) if grid.steps else np.array([])
