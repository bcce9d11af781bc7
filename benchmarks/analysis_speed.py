"""Measures the speed of the analysis of a checkpoint: `python benchmarks/analysis_speed.py [--small] [--json]`.

One checkpoint of the paper's large size (random weights, 12 layers, d_model 1536, hidden 6144, 256 rows), in one
process and one thread. The five metrics and components of Pico's own suite configuration: CKA on OV activations, and
PER, condition number, Gini and Frobenius norm on OV weights and gradients, per head and joined.

- ours: `measure_layer` of every layer, files read and rows made.
- plain: a straightforward implementation of each metric by itself. For each value it reads the states again, forms the
  dense matrix, and takes the metric's textbook formula with a float32 SVD. Of one layer; its time is multiplied by the
  number of layers, which the output says.

`memory_gb` is the process's peak resident memory after ours, the making of the checkpoint included.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pico.analysis.engine.choices import Place, Target
from pico.analysis.engine.layer import Task, measure_layer
from pico.analysis.engine.table import Row
from pico.checkpoint import Checkpoint, step_name, write_checkpoint
from pico.spread import with_threads

METRICS = ("linear_cka", "per", "condition_number", "gini", "frobenius_norm")
DATA_TYPES = tuple((metric, ("weights", "gradients")) for metric in METRICS[1:])


class Size(NamedTuple):
    """The shape of the checkpoint."""

    n_layers: int
    d_model: int
    hidden: int
    n_heads: int
    n_kv_heads: int
    rows: int


LARGE = Size(12, 1536, 6144, 12, 4, 256)
SMALL = Size(2, 192, 768, 4, 2, 64)


def write(folder: Path, size: Size, step: int) -> Checkpoint:
    """Writes a checkpoint of random weights, activations and gradients, with what Pico's suite captures."""
    generator = torch.Generator().manual_seed(step)
    kv = size.d_model // size.n_heads * size.n_kv_heads
    shapes = {
        "attention.v_proj": (kv, size.d_model),
        "attention.o_proj": (size.d_model, size.d_model),
        "swiglu.w_2": (size.d_model, size.hidden),
    }
    names = {f"layers.{layer}.{name}": shape for layer in range(size.n_layers) for name, shape in shapes.items()}

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    dynamics = {}
    for split in ("train", "val"):
        dynamics[f"{split}_activations"] = {name: random(size.rows, shape[0]) for name, shape in names.items()}
        dynamics[f"{split}_gradients"] = {f"{name}.weight": random(*shape) for name, shape in names.items()}
    return write_checkpoint(
        folder / step_name(step),
        model={f"{name}.weight": 0.02 * random(*shape) for name, shape in names.items()},
        config={
            "d_model": size.d_model,
            "n_layers": size.n_layers,
            "attention_n_heads": size.n_heads,
            "attention_n_kv_heads": size.n_kv_heads,
        },
        trainer={"step": step, "tokens": 0},
        dynamics=dynamics,
    )


def ours(one: Checkpoint, last: Checkpoint, size: Size) -> list[Row]:
    """Returns all rows of all layers."""
    rows = []
    for layer in range(size.n_layers):
        targets = (Target(Place(last.folder)),)
        task = Task("large", Place(one.folder), layer, METRICS, ("ov_circuit",), (), targets, data_types=DATA_TYPES)
        rows += measure_layer(task)
    return rows


def plain(one: Checkpoint, last: Checkpoint, size: Size) -> dict[tuple, float]:
    """Computes layer 0's values by (metric, data type, split, head), each from the files."""
    found = {}
    for head in (*range(size.n_heads), None):
        for split in ("train", "val"):
            x, y = (_dense(checkpoint, size, "activations", split, head) for checkpoint in (one, last))
            found["linear_cka", "activations", split, head] = _cka(x, y)
        for name, formula in PLAIN.items():
            for data_type, split in (("weights", None), ("gradients", "train"), ("gradients", "val")):
                found[name, data_type, split, head] = formula(_dense(one, size, data_type, split, head))
    return found


def _dense(checkpoint: Checkpoint, size: Size, data_type: str, split: str | None, head: int | None) -> Tensor:
    """Returns the OV circuit of layer 0 as one matrix; all heads are added up for head None."""
    if head is None:
        return torch.stack([_dense(checkpoint, size, data_type, split, each) for each in range(size.n_heads)]).sum(0)
    prefix, group = "layers.0.attention.", size.n_heads // size.n_kv_heads

    def of(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        v = tensors[f"{prefix}v_proj.weight"].unflatten(0, (size.n_kv_heads, -1))[head // group]
        return v, tensors[f"{prefix}o_proj.weight"].unflatten(1, (size.n_heads, -1))[:, head]

    v, o = of(checkpoint.model(prefix))
    if data_type == "weights":
        return o @ v
    tensors = checkpoint.dynamics(str(split), data_type, prefix)
    if data_type == "activations":
        return tensors[f"{prefix}v_proj"].unflatten(1, (size.n_kv_heads, -1))[:, head // group] @ o.T
    d_v, d_o = of(tensors)
    return d_o @ v + o @ d_v


def _cka(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return float((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def _per(x: Tensor) -> float:
    share = torch.linalg.svdvals(x)
    share = share / share.sum()
    return float(torch.exp(-torch.xlogy(share, share).sum()))


def _condition(x: Tensor) -> float:
    spectrum = torch.linalg.svdvals(x)
    return float(spectrum[0] / spectrum[spectrum > spectrum[0] * max(x.shape) * torch.finfo(x.dtype).eps][-1])


def _gini(x: Tensor) -> float:
    values = x.abs().flatten().sort().values.double()
    count = len(values)
    return float((torch.arange(1 - count, count, 2, dtype=torch.float64) * values).sum() / (count * values.sum()))


def _frobenius(x: Tensor) -> float:
    return float(x.double().norm())


PLAIN: dict[str, Callable[[Tensor], float]] = {
    "per": _per, "condition_number": _condition, "gini": _gini, "frobenius_norm": _frobenius,
}  # fmt: skip


def disagreement(rows: list[Row], values: dict[tuple, float], size: Size) -> float:
    """Returns the largest relative difference between the two sides: they must have computed the same thing."""
    largest, compared = 0.0, 0
    for row in rows:
        key = (row["metric"], row["data_type"], row["split"], row["head"])
        if row["layer"] == 0 and key in values and row["value"] is not None:
            expected = values[key]
            if row["metric"] == "per":  # over the rank that the factors allow: one for weights, two for gradients
                heads = size.n_kv_heads if row["head"] is None else 1
                factors = 1 if row["data_type"] == "weights" else 2
                expected /= min(size.d_model, factors * heads * (size.d_model // size.n_heads))
            largest, compared = max(largest, abs(row["value"] / expected - 1)), compared + 1
    if compared != len(values):
        raise AssertionError(f"{len(values)} values were to be compared, but {compared} were found")
    return largest


def measure(size: Size) -> dict[str, Any]:
    """Times both sides, in one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        one, last = (write(Path(folder), size, step) for step in (0, 1))
        start = time.monotonic()
        rows = with_threads(ours, (one, last, size), 1)
        seconds = time.monotonic() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        start = time.monotonic()
        values = with_threads(plain, (one, last, size), 1)
        one_layer = time.monotonic() - start
    return {
        "size": size._asdict(),
        "ours_seconds": round(seconds, 3),
        "plain_seconds": round(one_layer * size.n_layers, 3),
        "plain_measured": f"layer 0 in {one_layer:.3f} s, times {size.n_layers} layers",
        "ratio": round(one_layer * size.n_layers / seconds, 2),
        "memory_gb": round(memory, 3),
        "largest_relative_difference": disagreement(rows, values, size),
        "rows": len(rows),
    }


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--small", action="store_true", help="a small checkpoint, in seconds: for tests")
    options = parser.parse_args()
    found = measure(SMALL if options.small else LARGE)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"ours {found['ours_seconds']} s; plain {found['plain_seconds']} s (extrapolated: {found['plain_measured']})")
    print(f"{found['ratio']} times faster, peak memory {found['memory_gb']} GB")


if __name__ == "__main__":
    main()
