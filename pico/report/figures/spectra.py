"""The figure of spectra over training, with the Marchenko-Pastur edges drawn in."""

import numpy as np
from matplotlib.axes import Axes

from pico.report.figures import colours
from pico.report.figures.charts import Entry, Figure, Painter
from pico.report.figures.svg import short_count
from pico.report.inputs.spectra import Spectra


def spectra_over_steps(painter: Painter) -> Figure | None:
    """Singular values of one weight, descending, at several checkpoints; a panel a model; None without weights."""
    found = [(index, model, model.spectra) for index, model in enumerate(painter.suite.models) if model.spectra]
    if not found:
        return None
    steps = sorted({step for _, _, spectra in found for step in spectra.steps})
    top = max(float(spectra.values.max()) for _, _, spectra in found)

    def draw(axes: Axes, spectra: Spectra) -> None:
        for edge in spectra.edges:
            axes.axhline(edge, color=colours.MUTED, linewidth=0.9, dashes=(4, 2))
        places = (np.arange(spectra.values.shape[1]) + 0.5) / spectra.values.shape[1]
        for step, values in zip(spectra.steps, spectra.values, strict=True):
            axes.plot(places, values, color=_colour(steps, step), linewidth=1.3)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.05 * top)
        axes.set_xlabel("rank / number of singular values")
        axes.set_ylabel("singular value")

    panels = [
        painter.paint(
            f"spectra-{index}",
            f"Singular values of {spectra.module} of layer {spectra.layer} of {model.name} at several steps",
            lambda axes, spectra=spectra: draw(axes, spectra),  # type: ignore[misc]
            width=2.9,
            height=2.1,
            heading=f"{model.name} · {spectra.module}, layer {spectra.layer}, {' × '.join(map(str, spectra.shape))}",
        )
        for index, model, spectra in found
    ]
    above = ", ".join(
        f"{int((spectra.values[-1] > spectra.edges[1]).sum())} of {spectra.values.shape[1]} in {model.name}"
        for _, model, spectra in found
    )
    return Figure(
        "spectra",
        "Spectra of weights",
        "Singular values, in descending order, of one weight matrix of the middle layer at several checkpoints, over "
        "σ √max(m, n), σ being the root mean square entry at that step. Dashed: the Marchenko-Pastur edges, between "
        "which the singular values of independent entries lie; what rises above the upper one was learned. Of single "
        "matrices; one run a model.",
        panels,
        entries=[Entry(_colour(steps, step), f"step {short_count(step)}") for step in steps],
        columns=painter.columns,
        says=f"Above the upper edge at the last checkpoint: {above}.",
    )


def _colour(steps: list[int], step: int) -> str:
    return colours.step_colour(steps.index(step) / max(1, len(steps) - 1))
