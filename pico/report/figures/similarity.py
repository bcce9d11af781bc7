"""Figures of similarity between checkpoints and between layers: CKA to the last, and of all pairs where computed."""

from pico.report.figures.charts import Figure, Painter, Panel
from pico.report.figures.nulls import null_level
from pico.report.figures.panels import colour_bar, layer_panel, square_panel
from pico.report.inputs.data import Model

CKA = ("debiased_cka", "linear_cka")
"""Drawn of all modules: the first of these that was computed."""
SPLIT = "val"


def similarity_figures(painter: Painter) -> list[Figure | None]:
    """All of them; None for those whose comparisons were not made."""
    return [cka_to_final(painter), linear_cka_to_final(painter), step_squares(painter), layer_squares(painter)]


def cka_metric(model: Model) -> str | None:
    """Which CKA was computed on the activations of this model."""
    return next((name for name in CKA if model.dynamics.modules(name, "simple", "activations")), None)


def modules_of(painter: Painter, metric: str) -> list[str]:
    """The modules that any model has values of, sorted."""
    dynamics = [model.dynamics for model in painter.suite.models]
    return sorted({module for one in dynamics for module in one.modules(metric, "simple", "activations")})


def cka_to_final(painter: Painter) -> Figure | None:
    """CKA of each layer's activations to those of the last checkpoint, a panel per module and model."""
    metrics = {cka_metric(model) for model in painter.suite.models} - {None}
    metric = next((name for name in CKA if name in metrics), None)
    if metric is None:
        return None
    return Figure(
        "cka",
        "Similarity to the final representation",
        f"{'Debiased linear' if metric == 'debiased_cka' else 'Linear'} CKA (centred kernel alignment) between the "
        f"activations of each checkpoint and those of the last one, by layer, on {painter.suite.batch}. 1: the same up "
        f"to rotation and scale. {_null(metric)} Steps are logarithmic; one run a model.",
        _panels(painter, "cka", metric, modules_of(painter, metric)),
        legend="layers",
        columns=painter.columns,
    )


def linear_cka_to_final(painter: Painter) -> Figure | None:
    """The same without debiasing, of one module: where its null lies is the reason for debiasing."""
    modules = modules_of(painter, "linear_cka")
    if not modules or {cka_metric(model) for model in painter.suite.models} != {"debiased_cka"}:
        return None
    return Figure(
        "cka-linear",
        "The same without debiasing",
        f"Linear CKA, as it is usually given, of {modules[-1]} to the last checkpoint, on {painter.suite.batch}. "
        f"{_null('linear_cka')} Steps are logarithmic; one run a model.",
        _panels(painter, "cka-linear", "linear_cka", modules[-1:]),
        legend="layers",
        columns=painter.columns,
    )


def step_squares(painter: Painter) -> Figure | None:
    """CKA between every two checkpoints of the middle layer, a panel a model."""
    found = []
    for index, model in enumerate(painter.suite.models):
        layer = model.config["n_layers"] // 2
        if metric := cka_metric(model):
            module = modules_of(painter, metric)[-1]
            if pairs := model.dynamics.step_pairs(metric, "simple", SPLIT, module, layer):
                label = f"CKA of {module} of layer {layer} of {model.name} between every two checkpoints"
                heading = f"{model.name} · {module}, layer {layer}"
                found.append(square_panel(painter, f"steps-{index}", label, pairs, "step", heading))
    return _squares(painter, "cka-steps", "Similarity of checkpoints with each other", "every two checkpoints", found)


def layer_squares(painter: Painter) -> Figure | None:
    """CKA between every two layers at the last checkpoint, a panel a model."""
    found = []
    for index, model in enumerate(painter.suite.models):
        if metric := cka_metric(model):
            module = modules_of(painter, metric)[-1]
            if pairs := model.dynamics.layer_pairs(metric, "simple", SPLIT, module):
                label = f"CKA of {module} of {model.name} between every two layers at the last checkpoint"
                found.append(
                    square_panel(painter, f"layers-{index}", label, pairs, "layer", f"{model.name} · {module}")
                )
    return _squares(
        painter, "cka-layers", "Similarity of layers with each other", "every two layers of the last checkpoint", found
    )


def _squares(painter: Painter, key: str, title: str, what: str, panels: list[Panel]) -> Figure | None:
    if not panels:
        return None
    return Figure(
        key,
        title,
        f"CKA between {what}, on {painter.suite.batch}. One colour scale from 0 to 1; grey: not defined. Independent "
        "representations give about 0 where CKA is debiased. One run a model.",
        panels,
        legend="",
        colour_bars=[colour_bar("CKA", "0", "1")],
        columns=painter.columns,
    )


def _panels(painter: Painter, key: str, metric: str, modules: list[str]) -> list[Panel]:
    panels = []
    for module in modules:
        for index, model in enumerate(painter.suite.models):
            grid = model.dynamics.grid(metric, "simple", "activations", split=SPLIT, module=module)
            if grid.steps:
                shapes = model.dynamics.shapes(metric, "simple", "activations", module)
                panels.append(
                    layer_panel(
                        painter,
                        f"{key}-{module.replace('.', '-')}-{index}",
                        f"CKA of {module} of {model.name} to the last checkpoint, by layer, over steps",
                        grid,
                        "CKA to final",
                        f"{model.name} · {module}",
                        limits=(-0.05, 1.03),
                        null=null_level(metric, *shapes[-1]),
                    )
                )
    return panels


def _null(metric: str) -> str:
    if metric == "linear_cka":
        return (
            "The dashed line is what independent representations of that shape give: p / (n + p) for n rows of p "
            "features, so well over 0 where a layer is wide."
        )
    return "The dashed line at 0 is what independent representations give."
