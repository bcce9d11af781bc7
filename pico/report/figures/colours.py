"""Colours that follow the page's light or dark mode: drawn as placeholders, replaced by CSS variables.

Models and layers lie on ramps whose lightness changes steadily, so that their order is seen in grey and with any
colour vision; models have markers and line widths of their own besides.
"""

from collections.abc import Mapping, Sequence

INK, MUTED, RULE = "#0a0b0c", "#0a0b0d", "#0a0b0e"
"""Placeholders for text, for axes and baselines, for grid lines. No real colour of a picture is so dark a grey."""

MODEL_RAMPS = {
    "light": ("#c27a00", "#c2405f", "#7a3a9a", "#15246b"),
    "dark": ("#b8741a", "#e3697c", "#c79af2", "#b5dcff"),
}
LAYER_RAMPS = {
    "light": ("#3a9c8f", "#1f7fa0", "#1c3f7a", "#1a1442"),
    "dark": ("#2f7f86", "#4aaea6", "#8fd6a8", "#f2f5c4"),
}
STEP_RAMPS = {
    "light": ("#8a8f2a", "#2f8f5b", "#22708f", "#34408f", "#3a1257"),
    "dark": ("#7a6fb5", "#5b95c9", "#4fb8a5", "#a5d36a", "#fdf0a0"),
}
STEPS = 6
"""Colours of steps: as many as a picture of spectra has."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MARKER_SIGNS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "★")


def model_colour(index: int) -> str:
    """Returns the placeholder of the `index`-th model, narrowest first."""
    return f"#0a0c{index:02x}"


def layer_colour(index: int) -> str:
    """Returns the placeholder of the `index`-th layer, from the input."""
    return f"#0a0d{index:02x}"


def step_colour(place: float) -> str:
    """Returns the placeholder of a step, from the first (0) to the last (1) of those drawn."""
    return f"#0a0f{round(place * (STEPS - 1)):02x}"


def replacements(models: int, layers: int) -> dict[str, str]:
    """Returns placeholder -> the CSS variable that stands for it."""
    return {
        INK: "var(--ink)",
        MUTED: "var(--muted)",
        RULE: "var(--rule)",
        **{model_colour(index): f"var(--model-{index})" for index in range(models)},
        **{layer_colour(index): f"var(--layer-{index})" for index in range(layers)},
        **{step_colour(index / (STEPS - 1)): f"var(--step-{index})" for index in range(STEPS)},
    }


PAGE = {
    "light": {"--paper": "#fdfdfb", "--ink": "#1c1e21", "--muted": "#666b73", "--rule": "#dcdcd5"},
    "dark": {"--paper": "#15171a", "--ink": "#e6e6e1", "--muted": "#9aa0a8", "--rule": "#33373d"},
}
"""The page's own variables that figures use, by mode."""


def values(mode: str, models: int, layers: int) -> dict[str, str]:
    """Returns CSS variable -> colour of models, layers and steps; mode: "light" or "dark"."""
    return {
        **{f"--model-{index}": colour for index, colour in enumerate(ramp(MODEL_RAMPS[mode], models))},
        **{f"--layer-{index}": colour for index, colour in enumerate(ramp(LAYER_RAMPS[mode], layers))},
        **{f"--step-{index}": colour for index, colour in enumerate(ramp(STEP_RAMPS[mode], STEPS))},
    }


def declarations(variables: Mapping[str, str]) -> str:
    """Returns the variables as CSS declarations."""
    return " ".join(f"{name}: {value};" for name, value in variables.items())


def ramp(anchors: Sequence[str], count: int) -> list[str]:
    """Returns `count` colours evenly spaced along the anchors, mixed in sRGB; a single one is the last anchor."""
    stops = [tuple(int(anchor[i : i + 2], 16) for i in (1, 3, 5)) for anchor in anchors]
    colours = []
    for index in range(count):
        place = (len(stops) - 1) * (index / (count - 1) if count > 1 else 1.0)
        low = min(int(place), len(stops) - 2)
        mixed = (a + (b - a) * (place - low) for a, b in zip(stops[low], stops[low + 1], strict=True))
        colours.append("#" + "".join(f"{round(value):02x}" for value in mixed))
    return colours
