"""README.md of an exported folder, and the samples that it shows, by transformers' own `generate`."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import torch

from pico.config import DecoderConfig, Params
from pico.config.model import in_words
from pico.export.hugging_face import architecture, load_exported

PROMPTS = (
    "The people of the United States",
    "Hello! How are you today?",
    "A small animal that",
    "The city is the capital of",
    "def __init__(self,",
)
"""One in the manner of each domain of the embedded corpus: speech, dialogue, dictionary, encyclopedia, code."""
NEW_TOKENS = 48


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
    """Returns the card, Markdown with YAML front matter.

    `results`: the entry of results.json (docs/architecture.md) for the exported step; `samples`: see `continuations`;
    `embedding_parameters`: those of the input and output embeddings.
    """
    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
    )
    environment.filters.update(cell=_cell, number=_number)
    source = resources.files("pico.export").joinpath("templates/model_card.md.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        model=model,
        params=params,
        config=config,
        architecture=architecture(config).title,
        options=in_words(config),
        parameters=parameters,
        embedding_parameters=embedding_parameters,
        results=results,
        heldout={domain: values for domain, values in sorted(results["heldout"].items()) if domain != "all"},
        benchmarks=dict(sorted(results["benchmarks"].items())),
        samples=samples,
    )


def _cell(text: Any) -> str:
    """Returns text that cannot break out of a Markdown table cell."""
    return str(text).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _number(value: float | None, digits: int = 3) -> str:
    """Returns a number with `digits` decimals, or a dash where there is none."""
    return "—" if value is None else f"{value:.{digits}f}"


@torch.no_grad()
def continuations(
    folder: Path, prompts: tuple[str, ...] = PROMPTS, new_tokens: int = NEW_TOKENS
) -> list[dict[str, str]]:
    """Returns greedy continuations of `prompts`, at most `new_tokens` each, as {"prompt", "continuation"}.

    Prompts are cut from the left where they do not fit into the context; one is generated at a time, so that no padding
    can touch the result.
    """
    from transformers import AutoTokenizer  # slow to import, so only where it is used

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_exported(folder)
    new_tokens = min(new_tokens, model.config.max_position_embeddings - 1)
    room = model.config.max_position_embeddings - new_tokens
    samples = []
    for prompt in prompts:
        encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        inputs = {name: ids[:, -room:] for name, ids in encoded.items()}
        output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        text = str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        samples.append({"prompt": prompt, "continuation": text})
    return samples
