"""Colours that follow the page's light or dark mode: drawn as placeholders, replaced by CSS variables.

Models and layers lie on ramps whose lightness changes steadily, so that their order is seen in grey and with any
colour vision; models have markers and line widths of their own besides.
"""

from collections.abc import Sequence

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
    """The placeholder of the `index`-th model, narrowest first."""
    return f"#0a0c{index:02x}"


def layer_colour(index: int) -> str:
    """The placeholder of the `index`-th layer, from the input."""
    return f"#0a0d{index:02x}"


def step_colour(place: float) -> str:
    """The placeholder of a step, from the first (0) to the last (1) of those drawn."""
    return f"#0a0f{round(place * (STEPS - 1)):02x}"


def line_width(index: int) -> float:
    """Wider models have wider lines, in points."""
    return 1.1 + 0.25 * min(index, 5)


def replacements(models: int, layers: int) -> dict[str, str]:
    """Placeholder -> the CSS variable that stands for it."""
    return {
        INK: "var(--ink)",
        MUTED: "var(--muted)",
        RULE: "var(--rule)",
        **{model_colour(index): f"var(--model-{index})" for index in range(models)},
        **{layer_colour(index): f"var(--layer-{index})" for index in range(layers)},
        **{step_colour(index / (STEPS - 1)): f"var(--step-{index})" for index in range(STEPS)},
    }


def variables(mode: str, models: int, layers: int) -> str:
    """CSS declarations of the model and layer colours; mode: light or dark."""
    lines = [f"--model-{i}: {colour};" for i, colour in enumerate(ramp(MODEL_RAMPS[mode], models))]
    lines += [f"--layer-{i}: {colour};" for i, colour in enumerate(ramp(LAYER_RAMPS[mode], layers))]
    lines += [f"--step-{i}: {colour};" for i, colour in enumerate(ramp(STEP_RAMPS[mode], STEPS))]
    return " ".join(lines)


PAPER = {"light": "#fdfdfb", "dark": "#15171a"}
_PLAIN = {
    "light": {INK: "#1c1e21", MUTED: "#666b73", RULE: "#dcdcd5"},
    "dark": {INK: "#e6e6e1", MUTED: "#9aa0a8", RULE: "#33373d"},
}
"""What --ink, --muted and --rule are in style.css.j2."""


def plain(mode: str, models: int, layers: int) -> dict[str, str]:
    """Placeholder -> the colour itself, for pictures that can't have variables; mode: light or dark."""
    return {
        **_PLAIN[mode],
        **{model_colour(i): colour for i, colour in enumerate(ramp(MODEL_RAMPS[mode], models))},
        **{layer_colour(i): colour for i, colour in enumerate(ramp(LAYER_RAMPS[mode], layers))},
        **{step_colour(i / (STEPS - 1)): colour for i, colour in enumerate(ramp(STEP_RAMPS[mode], STEPS))},
    }


def standalone(models: int, layers: int) -> str:
    """CSS of all variables for an SVG file that stands alone: light, and dark where the reader's screen is."""
    rules = {
        mode: f":root {{ --paper: {PAPER[mode]}; --ink: {_PLAIN[mode][INK]}; --muted: {_PLAIN[mode][MUTED]}; "
        f"--rule: {_PLAIN[mode][RULE]}; {variables(mode, models, layers)} }}"
        for mode in ("light", "dark")
    }
    fonts = ":root { --sans: system-ui, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif; }"
    return f"{fonts} {rules['light']} @media screen and (prefers-color-scheme: dark) {{ {rules['dark']} }}"


def ramp(anchors: Sequence[str], count: int) -> list[str]:
    """`count` colours evenly spaced along the anchors, interpolated in sRGB; a single one is the last anchor."""
    stops = [tuple(int(anchor[i : i + 2], 16) for i in (1, 3, 5)) for anchor in anchors]
    colours = []
    for index in range(count):
        place = (len(stops) - 1) * (index / (count - 1) if count > 1 else 1.0)
        low = min(int(place), len(stops) - 2)
        mixed = (a + (b - a) * (place - low) for a, b in zip(stops[low], stops[low + 1], strict=True))
        colours.append("#" + "".join(f"{round(value):02x}" for value in mixed))
    return colours
