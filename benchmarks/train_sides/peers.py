"""The peers: their model and loss in the step that their users write. Nothing of pico is imported here."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from train_sides.shapes import BETAS, CLIP, DECAY, LR, Setting, now

Step = Callable[[], None]


def transformers(setting: Setting) -> Iterator[float]:
    """Steps of LlamaForCausalLM."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = setting.shape
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.d_model,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        max_position_embeddings=shape.seq_len,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
    )

    def loss(model: Any, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return model(input_ids=inputs, labels=targets, shift_labels=targets).loss

    return _timed(_plain_step(LlamaForCausalLM(config), loss, setting), setting)


def litgpt(setting: Setting) -> Iterator[float]:
    """Steps of litgpt's GPT."""
    try:
        from litgpt.config import Config
        from litgpt.model import GPT
        from litgpt.utils import chunked_cross_entropy
    except ImportError as error:
        raise SystemExit(
            f"litgpt cannot be imported by {sys.executable} ({error}). It needs an environment of its own:\n"
            "  python -m venv litgpt-env && litgpt-env/bin/pip install litgpt==0.5.13 torch==2.13.0\n"
            "and then: --peer litgpt --peer-python litgpt-env/bin/python"
        ) from error
    shape = setting.shape
    config = Config(
        block_size=shape.seq_len,
        n_layer=shape.n_layers,
        n_embd=shape.d_model,
        n_head=shape.n_heads,
        n_query_groups=shape.n_kv_heads,
        intermediate_size=shape.hidden,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.vocab_size,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )

    def loss(model: Any, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return chunked_cross_entropy(model(inputs), targets)

    return _timed(_plain_step(GPT(config), loss, setting), setting)


def _plain_step(model: torch.nn.Module, loss: Callable[..., torch.Tensor], setting: Setting) -> Step:
    """Forward, backward, clipping and fused AdamW, as a user of a peer writes them."""
    shape, device = setting.shape, torch.device(setting.device)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=DECAY, fused=True)
    compiled = torch.compile(model) if setting.cuda else model
    rows = torch.randint(
        0, shape.vocab_size, (shape.batch, shape.seq_len + 1), generator=torch.Generator().manual_seed(0)
    )
    inputs, targets = rows[:, :-1].contiguous().to(device), rows[:, 1:].contiguous().to(device)

    def step() -> None:
        with torch.autocast(setting.device, torch.bfloat16, enabled=setting.cuda):
            value = loss(compiled, inputs, targets)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _timed(step: Step, setting: Setting) -> Iterator[float]:
    for _ in range(8 if setting.cuda else 3):  # compiled and warm
        step()
    while True:
        started = now(setting)
        step()
        yield now(setting) - started
