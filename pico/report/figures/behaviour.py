"""Figures of behaviour: scores of in-context learning and induction against training loss, where they were measured."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from pico.report.figures.charts import Figure, Painter, binned, model_line
from pico.report.inputs.data import Model


@dataclass(frozen=True)
class Score:
    """A metric of behaviour that is drawn against loss."""

    metric: str
    title: str
    combine: str
    """Over layers and heads: "max" or "mean"."""
    says: str


SCORES = (
    Score(
        "in_context_score",
        "In-context score against loss",
        "mean",
        "How much lower the loss is late in a context than early in it (negative: the context helps; Olsson et al. "
        "2022)",
    ),
    Score(
        "induction_score",
        "Induction score against loss",
        "max",
        "The attention of the best head, on repeated random tokens, to the token after the earlier occurrence "
        "(a perfect head: 1)",
    ),
)


def scores_against_loss(painter: Painter) -> list[Figure]:
    """A figure a score; nothing for those that no model has."""
    figures = []
    for score in SCORES:
        curves = [(index, *score_and_loss(model, score)) for index, model in enumerate(painter.suite.models)]
        if not any(len(losses) for _, losses, _ in curves):
            continue

        def draw(axes: Axes, curves: list[tuple[int, np.ndarray, np.ndarray]] = curves, score: Score = score) -> None:
            for index, losses, values in curves:
                model_line(axes, index, losses, values)
            axes.invert_xaxis()
            axes.set_xlabel("training loss (nats per token), falling")
            axes.set_ylabel(score.metric.replace("_", " "))

        figures.append(
            Figure(
                f"score-{score.metric}",
                score.title,
                f"{score.says}, of every checkpoint, against the training loss at that step (the mean in bins of "
                "log-step), which falls from left to right. One run a model.",
                [painter.paint(f"score-{score.metric}", score.title, draw, width=6.0)],
                columns=1,
            )
        )
    return figures


def score_and_loss(model: Model, score: Score) -> tuple[np.ndarray, np.ndarray]:
    """Training losses, smoothed as in the loss curve, in order of step, and the score at the same steps.

    Between the smoothed curve's points the loss is taken as linear in ln(1 + step); checkpoints before its first point,
    of which no batch has been trained on, are left out.
    """
    steps, values = model.dynamics.curve(score.metric, score.combine)
    at, loss = binned(model.training.step, model.training.train_loss)
    if not len(at):
        return at, at
    inside = (steps >= at[0]) & (steps <= model.training.step.max())
    return np.interp(np.log1p(steps[inside]), np.log1p(at), loss), values[inside]
