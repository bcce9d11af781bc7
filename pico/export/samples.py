"""Continuations of fixed prompts by an exported model, through transformers' own `generate`: proof that it works."""

from pathlib import Path

import torch

from pico.export.loading import load_exported

PROMPTS = (
    "The people of the United States",
    "Hello! How are you today?",
    "A small animal that",
    "The city is the capital of",
    "def __init__(self,",
)
"""One in the manner of each domain of the embedded corpus: speech, dialogue, dictionary, encyclopedia, code."""
NEW_TOKENS = 48


@torch.no_grad()
def continuations(
    folder: Path, prompts: tuple[str, ...] = PROMPTS, new_tokens: int = NEW_TOKENS
) -> list[dict[str, str]]:
    """Greedy continuations of `prompts`, at most `new_tokens` each, as {"prompt", "continuation"}.

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
        inputs = {
            name: ids[:, -room:]
            for name, ids in tokenizer(prompt, return_tensors="pt").items()
            if name in ("input_ids", "attention_mask")
        }
        output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        text = str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        samples.append({"prompt": prompt, "continuation": text})
    return samples
