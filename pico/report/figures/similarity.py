"""Figures of similarity between checkpoints and between layers by CKA, and of the time to stability that follows."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from pico.report.figures.drawing import ColourBar, Figure, Painter, Panel, dashed, model_line
from pico.report.inputs.convergence import EARLY, LEVEL, RunStability, Stability, concordance, stability, summarise
from pico.report.inputs.dynamics import CKA, HELDOUT_SPLIT, null_level

NEVER = 1.12
"""The height at which a layer that is never stable is drawn: above the end of training."""


def cka_to_final(painter: Painter) -> Figure | None:
    """Draws CKA of each layer's activations to those of the last checkpoint, a panel per module and model."""
    metrics = {model.dynamics.cka for model in painter.suite.models}
    metric = next((name for name in CKA if name in metrics), None)
    if metric is None:
        return None
    caption = (
        f"{'Debiased linear' if metric == 'debiased_cka' else 'Linear'} CKA (centred kernel alignment) between the "
        f"activations of each checkpoint and those of the last one, by layer, on {painter.suite.batch}. 1: the same up "
        "to rotation and scale."
    )
    modules = _modules(painter, metric)
    return _to_final(painter, "cka", "Similarity to the final representation", caption, metric, modules)


def linear_cka_to_final(painter: Painter) -> Figure | None:
    """Draws the same without debiasing, of one module: where its null lies is the reason for debiasing."""
    modules = _modules(painter, "linear_cka")
    if not modules or {model.dynamics.cka for model in painter.suite.models} != {"debiased_cka"}:
        return None
    caption = f"Linear CKA, as it is usually given, of {modules[-1]} to the last checkpoint, on {painter.suite.batch}."
    return _to_final(painter, "cka-linear", "The same without debiasing", caption, "linear_cka", modules[-1:])


def step_squares(painter: Painter) -> Figure | None:
    """Draws CKA between every two checkpoints of the middle layer, a panel a model."""
    found = []
    for index, model in enumerate(painter.suite.models):
        if metric := model.dynamics.cka:
            layer, module = model.config["n_layers"] // 2, _modules(painter, metric)[-1]
            if pairs := model.dynamics.step_pairs(metric, "simple", HELDOUT_SPLIT, module, layer):
                label = f"CKA of {module} of layer {layer} of {model.name} between every two checkpoints"
                heading = f"{model.name} · {module}, layer {layer}"
                found.append(painter.square_panel(f"steps-{index}", label, pairs, "step", heading))
    return _squares(painter, "cka-steps", "Similarity of checkpoints with each other", "every two checkpoints", found)


def layer_squares(painter: Painter) -> Figure | None:
    """Draws CKA between every two layers at the last checkpoint, a panel a model."""
    found = []
    for index, model in enumerate(painter.suite.models):
        if metric := model.dynamics.cka:
            module = _modules(painter, metric)[-1]
            if pairs := model.dynamics.layer_pairs(metric, "simple", HELDOUT_SPLIT, module):
                label = f"CKA of {module} of {model.name} between every two layers at the last checkpoint"
                heading = f"{model.name} · {module}"
                found.append(painter.square_panel(f"layers-{index}", label, pairs, "layer", heading))
    return _squares(
        painter, "cka-layers", "Similarity of layers with each other", "every two layers of the last checkpoint", found
    )


def _modules(painter: Painter, metric: str) -> list[str]:
    """Returns the modules for whose activations any model has values of a metric, sorted."""
    dynamics = [model.dynamics for model in painter.suite.models]
    return sorted({module for one in dynamics for module in one.modules(metric, "simple", "activations")})


def _squares(painter: Painter, key: str, title: str, pairs: str, panels: list[Panel]) -> Figure | None:
    if not panels:
        return None
    return Figure(
        key,
        title,
        f"CKA between {pairs}, on {painter.suite.batch}. One colour scale from 0 to 1; grey: not defined. Independent "
        "representations give about 0 where CKA is debiased. One run a model.",
        panels,
        legend="",
        colour_bars=[ColourBar("0", "1")],
        columns=painter.columns,
    )


def _to_final(painter: Painter, key: str, title: str, caption: str, metric: str, modules: list[str]) -> Figure:
    panels = []
    for module in modules:
        for index, model in enumerate(painter.suite.models):
            grid = model.dynamics.grid(metric, "simple", "activations", split=HELDOUT_SPLIT, module=module)
            if grid.steps:
                panels.append(
                    painter.layer_panel(
                        f"{key}-{module.replace('.', '-')}-{index}",
                        f"CKA of {module} of {model.name} to the last checkpoint, by layer, over steps",
                        grid,
                        "CKA to final",
                        f"{model.name} · {module}",
                        limits=(-0.05, 1.03),
                        null=null_level(metric, *model.dynamics.shape(metric, "simple", "activations", module)),
                    )
                )
    null = "The dashed line at 0 is what independent representations give."
    if metric == "linear_cka":
        null = (
            "The dashed line is what independent representations of that shape give: p / (n + p) for n rows of p "
            "features, so well over 0 where a layer is wide."
        )
    caption = f"{caption} {null} Steps are logarithmic; one run a model."
    return Figure(key, title, caption, panels, legend="layers", columns=painter.columns)


@dataclass(frozen=True)
class Convergence:
    """The report's section on convergence: a figure, two tables and a sentence."""

    figure: Figure
    rows: list[tuple[str, str, list[Stability | None]]]
    """Model, module, and that module's layers."""
    layers: list[int]
    summaries: list[RunStability]
    sentence: str
    early: float = EARLY


def convergence(painter: Painter) -> Convergence | None:
    """Returns the section; None where debiased CKA to the last checkpoint was not computed."""
    suite = painter.suite
    found = [one for model in suite.models for one in stability(model.dynamics, model.name)]
    if not found:
        return None
    layers = sorted({one.layer for one in found})
    modules = sorted({one.module or "" for one in found})
    names = [model.name for model in suite.models]
    at = {(one.run, one.module or "", one.layer): one for one in found}
    summaries = summarise(found, names)
    return Convergence(
        figure=_stability_figure(painter, modules, layers, at),
        rows=[
            (name, module, [at.get((name, module, layer)) for layer in layers])
            for name in names
            for module in modules
            if any((name, module, layer) in at for layer in layers)
        ],
        layers=layers,
        summaries=summaries,
        sentence=sentence(summaries),
    )


def sentence(summaries: list[RunStability]) -> str:
    """Returns the result in words, narrowest model first: no more than the numbers say, as one run has no error."""
    narrow, wide = summaries[0], summaries[-1]
    early = "; ".join(f"{one.run} {one.stable_early} of {one.layers}" for one in summaries)
    start = f"Settled (CKA at least {LEVEL:g} from there on) within {EARLY:.0%} of training: {early}. "
    known = ", ".join(f"{one.early:.2f} ({one.run})" for one in summaries if one.early is not None)
    if known:
        start += f"At that point the mean similarity to the last checkpoint is {known}. "
    if len(summaries) < 2:
        return start + "With one size there is nothing to compare."
    order = concordance([one.median for one in summaries])
    trend = {
        True: "The wider the model, the sooner its median layer settles",
        False: "The wider the model, the later its median layer settles",
        None: "The time at which the median layer settles is in no order of size",
    }[None if order is None or abs(order) < 1 else order < 0]
    ends = f"{_when(narrow)} for {narrow.run}, {_when(wide)} for {wide.run}"
    holds = wide.stable_early > wide.layers / 2 and order == -1
    paper = (
        "as “Tending Towards Stability” reports of larger suites"
        if holds
        else "where “Tending Towards Stability” reports large models settling within the first fifth of training and "
        "small ones later; this suite, at this length of training, doesn't show that"
    )
    return f"{start}{trend}: {ends}; {paper}."


def _when(one: RunStability) -> str:
    return "not before the end" if one.median is None else f"{one.median:.0%} of training"


def _stability_figure(
    painter: Painter, modules: list[str], layers: list[int], at: dict[tuple[str, str, int], Stability]
) -> Figure:
    suite = painter.suite

    def draw(axes: Axes, module: str) -> None:
        dashed(axes, EARLY)
        for index, model in enumerate(suite.models):
            curve = [at.get((model.name, module, layer)) for layer in layers]
            places = np.array(layers, float) + 0.07 * (index - (len(suite.models) - 1) / 2)  # so that none hides others
            never = np.array([one is not None and one.fraction is None for one in curve])
            times = [np.nan if one is None or one.fraction is None else one.fraction for one in curve]
            model_line(axes, index, places, np.array(times))
            # no line: never is not a time that one could lead to
            model_line(axes, index, places[never], np.full(int(never.sum()), NEVER), linestyle="")
        axes.set_xticks(layers)
        axes.set_xlim(layers[0] - 0.3, layers[-1] + 0.3)
        axes.set_ylim(-0.03, 1.2)
        axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1, NEVER], ["0", "20%", "40%", "60%", "80%", "100%", "never"])
        axes.set_xlabel("layer")
        axes.set_ylabel("share of training")

    return Figure(
        "stability",
        "Time to stability",
        f"The first point of training from which debiased CKA to the last checkpoint stays at or above {LEVEL:g}, by "
        "layer, on the fixed held-out batch; the last checkpoint itself doesn't count. Between checkpoints CKA is "
        "taken as linear in ln(1 + step). Dashed: the first fifth of training, within which large models settle by "
        "Diehl Martinez et al. 2024. One run a model.",
        [
            painter.paint(
                f"stability-{module.replace('.', '-')}",
                f"Share of training until {module} of each layer is stable, for each model",
                draw,
                module,
                width=3.2,
                height=2.5,
                left=0.7,
                heading=module,
            )
            for module in modules
        ],
        columns=min(3, len(modules)),
    )
