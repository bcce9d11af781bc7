"""Small runs made of random numbers in the real checkpoint format."""

from pathlib import Path

import torch

from pico.checkpoint import Checkpoint, step_name, write_checkpoint

LAYERS = ("attention.v_proj", "attention.o_proj", "swiglu.w_2")


def write_run(
    run: Path,
    *,
    steps: tuple[int, ...] = (0, 1, 2, 4),
    d_model: int = 16,
    hidden: int = 64,
    n_layers: int = 2,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    rows: int = 32,
) -> list[Checkpoint]:
    """Writes `run/checkpoints/step_*`; weights and activations drift from step to step."""
    generator = torch.Generator().manual_seed(0)
    head_dim = d_model // n_heads
    shapes = {
        "attention.v_proj": (n_kv_heads * head_dim, d_model),
        "attention.o_proj": (d_model, n_heads * head_dim),
        "swiglu.w_2": (d_model, hidden),
    }
    names = {f"layers.{layer}.{module}": shape for layer in range(n_layers) for module, shape in shapes.items()}
    weights = {f"{name}.weight": 0.02 * torch.randn(shape, generator=generator) for name, shape in names.items()}
    norms = {f"layers.{layer}.attention_norm.weight": torch.ones(d_model) for layer in range(n_layers)}
    states = {
        split: {name: torch.randn(rows, shape[0], generator=generator) for name, shape in names.items()}
        for split in ("train", "val")
    }
    written = []
    for step in steps:
        for name, weight in weights.items():
            weights[name] = weight + 0.005 * torch.randn(weight.shape, generator=generator)
        dynamics = {}
        for split, tensors in states.items():
            for name, tensor in tensors.items():
                tensors[name] = tensor + 0.5 * torch.randn(tensor.shape, generator=generator)
            dynamics[f"{split}_activations"] = dict(tensors)
            dynamics[f"{split}_gradients"] = {
                name: 1e-3 * torch.randn(weight.shape, generator=generator) for name, weight in weights.items()
            }
        written.append(
            write_checkpoint(
                run / "checkpoints" / step_name(step),
                model={**weights, **norms, "embedding_proj.weight": torch.zeros(8, d_model)},
                config={
                    "d_model": d_model,
                    "n_layers": n_layers,
                    "attention_n_heads": n_heads,
                    "attention_n_kv_heads": n_kv_heads,
                },
                trainer={"step": step, "tokens": 128 * step},
                dynamics=dynamics,
            )
        )
    return written
