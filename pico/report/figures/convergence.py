"""When layers settle, across the sizes of the suite: a picture, a table, and a sentence worked out from the data."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from pico.analysis.convergence import EARLY, LEVEL, Settling, Stability, concordance, settling, stability
from pico.report.figures.charts import Figure, Painter, colours, model_line
from pico.report.figures.similarity import SPLIT
from pico.report.inputs.data import Suite

METRIC = "debiased_cka"
NEVER = 1.12
"""Where a layer that never settles is drawn: above the end of training."""


@dataclass(frozen=True)
class Convergence:
    """What the report says of convergence."""

    figure: Figure
    level: float
    early: float
    rows: list[tuple[str, str, list[Stability | None]]]
    """Model, module, and that module's layers."""
    layers: list[int]
    summaries: list[Settling]
    sentence: str


def convergence(painter: Painter, level: float = LEVEL) -> Convergence | None:
    """None where debiased CKA to the last checkpoint was not computed."""
    suite = painter.suite
    found = [one for model in suite.models for one in _of(suite, model.name, level)]
    if not found:
        return None
    layers = sorted({one.layer for one in found})
    modules = sorted({one.module or "" for one in found})
    names = [model.name for model in suite.models]
    at = {(one.run, one.module or "", one.layer): one for one in found}
    summaries = settling(found, names)
    return Convergence(
        figure=_figure(painter, level, modules, layers, at),
        level=level,
        early=EARLY,
        rows=[
            (name, module, [at.get((name, module, layer)) for layer in layers])
            for name in names
            for module in modules
            if any((name, module, layer) in at for layer in layers)
        ],
        layers=layers,
        summaries=summaries,
        sentence=sentence(summaries, level),
    )


def sentence(summaries: list[Settling], level: float) -> str:
    """What is seen, narrowest model first. Says no more than the numbers do: one run a size has no error."""
    narrow, wide = summaries[0], summaries[-1]
    early = "; ".join(f"{one.run} {one.settled_early} of {one.layers}" for one in summaries)
    start = f"Settled (CKA at least {level:g} from there on) within {EARLY:.0%} of training: {early}. "
    middle = (
        "At that point the mean similarity to the last checkpoint is "
        + ", ".join(f"{one.early:.2f} ({one.run})" for one in summaries if one.early is not None)
        + ". "
    )
    middle = middle if any(one.early is not None for one in summaries) else ""
    if len(summaries) < 2:
        return start + middle + "With one size there is nothing to compare."
    order = concordance([one.median for one in summaries])
    known = {
        True: "The wider the model, the sooner its median layer settles",
        False: "The wider the model, the later its median layer settles",
        None: "The time at which the median layer settles is in no order of size",
    }[None if order is None or abs(order) < 1 else order < 0]
    ends = f"{_when(narrow)} for {narrow.run}, {_when(wide)} for {wide.run}"
    holds = wide.settled_early > wide.layers / 2 and order == -1
    paper = (
        "as “Tending Towards Stability” reports of larger suites"
        if holds
        else "where “Tending Towards Stability” reports large models settling within the first fifth of training and "
        "small ones later; this suite, at this length of training, doesn't show that"
    )
    return f"{start}{middle}{known}: {ends}; {paper}."


def _when(one: Settling) -> str:
    return "not before the end" if one.median is None else f"{one.median:.0%} of training"


def _of(suite: Suite, name: str, level: float) -> list[Stability]:
    model = next(model for model in suite.models if model.name == name)
    return stability(model.dynamics.table, level=level, metric=METRIC, split=SPLIT)


def _figure(
    painter: Painter, level: float, modules: list[str], layers: list[int], at: dict[tuple[str, str, int], Stability]
) -> Figure:
    suite = painter.suite

    def draw(axes: Axes, module: str) -> None:
        axes.axhline(EARLY, color=colours.MUTED, linewidth=0.9, dashes=(4, 2))
        for index, model in enumerate(suite.models):
            curve = [at.get((model.name, module, layer)) for layer in layers]
            places = np.array(layers, float) + 0.07 * (index - (len(suite.models) - 1) / 2)  # so that none hides others
            never = np.array([one is not None and one.fraction is None for one in curve])
            times = [np.nan if one is None or one.fraction is None else one.fraction for one in curve]
            model_line(axes, index, places, np.array(times))
            model_line(axes, index, places[never], np.full(int(never.sum()), NEVER))
            axes.lines[-1].set_linestyle("")  # never is not a time that a line could lead to
        axes.set_xticks(layers)
        axes.set_xlim(layers[0] - 0.3, layers[-1] + 0.3)
        axes.set_ylim(-0.03, 1.2)
        axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1, NEVER], ["0", "20%", "40%", "60%", "80%", "100%", "never"])
        axes.set_xlabel("layer")
        axes.set_ylabel("share of training")

    return Figure(
        "stability",
        "Time to stability",
        f"The first point of training from which debiased CKA to the last checkpoint stays at or above {level:g}, by "
        "layer, on the fixed held-out batch; the last checkpoint itself doesn't count. Between checkpoints CKA is "
        "taken as linear in ln(1 + step). Dashed: the first fifth of training, within which large models settle by "
        "Diehl Martinez et al. 2024. One run a model.",
        [
            painter.paint(
                f"stability-{module.replace('.', '-')}",
                f"Share of training until {module} of each layer is stable, for each model",
                lambda axes, module=module: draw(axes, module),  # type: ignore[misc]
                width=3.2,
                height=2.5,
                left=0.7,
                heading=module,
            )
            for module in modules
        ],
        columns=min(3, len(modules)),
    )
