"""README.md of an exported folder: what the model is, what it was made from, how well it does, how to load it."""

from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2

from pico.config import Params
from pico.model import DecoderConfig


def model_card(
    model: str,
    params: Params,
    config: DecoderConfig,
    *,
    parameters: int,
    embedding_parameters: int,
    results: dict[str, Any],
    samples: Sequence[dict[str, str]],
) -> str:
    """The card, Markdown with YAML front matter.

    `results`: the entry of results.json (docs/architecture.md) for the exported step; `samples`: see
    `pico.export.samples`; `embedding_parameters`: those of the input and output embeddings.
    """
    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    environment.filters["number"] = _number
    source = resources.files("pico.export").joinpath("templates/model_card.md.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        model=model,
        params=params,
        config=config,
        parameters=parameters,
        embedding_parameters=embedding_parameters,
        results=results,
        heldout={domain: values for domain, values in sorted(results["heldout"].items()) if domain != "all"},
        benchmarks=dict(sorted(results["benchmarks"].items())),
        samples=samples,
    )


def _cell(text: Any) -> str:
    """Text that cannot break out of a Markdown table cell."""
    return str(text).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` decimals, or a dash where there is none."""
    return "—" if value is None else f"{value:.{digits}f}"
