"""Speed of training beside a peer: `python benchmarks/train_speed.py [--peer transformers|litgpt] [--json]`.

The same shape, batch, precision and hardware, in one run: each side is a process of its own, and they take steps in
turn, so that whatever else the machine does disturbs both. Reported are medians, and the fastest steps.

- ours: `pico.train.loop.train` itself, rows read from token shards, with losses read back, checked and recorded.
- transformers: LlamaForCausalLM with scaled_dot_product_attention, its own loss, and fused AdamW.
- litgpt: GPT with the settings of Llama, its chunked_cross_entropy, and fused AdamW.

Peers are given their batch once, ready on the device. All sides clip gradients; on CUDA all run in bf16 by autocast
over fp32 weights and are compiled by torch.compile, on a CPU in fp32 and eager. `peak_share` is the share of the
machine's peak (see pico.watch.hardware) that goes into the model's products: of published bf16 FLOP/s on CUDA, where
it is MFU; on a CPU of the fastest fp32 product, measured here before and after.

litgpt's dependencies do not fit pico's, so it has an environment of its own:
    python -m venv litgpt-env && litgpt-env/bin/pip install litgpt==0.5.13 torch==2.13.0
    python benchmarks/train_speed.py --peer litgpt --peer-python litgpt-env/bin/python
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import torch
from train_sides.processes import SIDES, process, serve
from train_sides.shapes import SHAPES, Setting


def measure(setting: Setting, peer: str, peer_python: str, report: Callable[[str], None]) -> dict[str, Any]:
    """Both sides of one shape, a step each in turn."""
    from pico.flops import training_flops_per_token
    from pico.model import DecoderConfig
    from pico.watch.hardware import find_peak

    torch.set_num_threads(setting.threads)
    where = torch.device(setting.device), "bf16" if setting.cuda else "fp32"
    before = find_peak(*where)
    shape, found = setting.shape, {"ours": list[float](), peer: list[float]()}
    with ExitStack() as stack:
        sides = {
            side: stack.enter_context(process(python, side, setting))
            for side, python in (("ours", sys.executable), (peer, peer_python))
        }
        for number in range(setting.steps):
            for side, step in sides.items():
                found[side].append(step())
            report(f"{shape.name}: step {number + 1} of {setting.steps}")
    peak = max(before, find_peak(*where), key=lambda found: found.flops)
    config = DecoderConfig(
        shape.d_model, shape.n_layers, shape.vocab_size, shape.seq_len, shape.n_heads, shape.n_kv_heads, shape.hidden
    )
    each = training_flops_per_token(config, shape.seq_len)
    result: dict[str, Any] = {"shape": asdict(shape), "flops_per_token": each, "peak_flops": peak.flops,
                              "peak": "published bf16" if peak.published else "measured"}  # fmt: skip
    for side, seconds in found.items():
        rate = shape.tokens / statistics.median(seconds)
        result[side] = {
            "tokens_per_second": round(rate, 1),
            "fastest_tokens_per_second": round(shape.tokens / min(seconds), 1),
            "peak_share": round(rate * each / peak.flops, 4),
        }
    mine, theirs = result["ours"], result[peer]
    result["ratio"] = round(mine["tokens_per_second"] / theirs["tokens_per_second"], 3)
    result["ratio_of_fastest"] = round(mine["fastest_tokens_per_second"] / theirs["fastest_tokens_per_second"], 3)
    return result


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peer", choices=[side for side in SIDES if side != "ours"], default="transformers")
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that can import the peer")
    parser.add_argument("--shapes", choices=SHAPES, help="laptop on a CPU, paper (the four pico-decoders) on CUDA")
    parser.add_argument("--steps", type=int, default=15, help="steps of each side that are timed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, on a CPU")
    parser.add_argument("--micro-batch", type=int, help="sequences a step, instead of the shape's own")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    names = options.shapes or ("paper" if options.device == "cuda" else "laptop")
    results = []
    for shape in SHAPES[names]:
        if options.micro_batch:
            shape = replace(shape, batch=options.micro_batch)
        setting = Setting(shape, options.device, options.threads, options.steps)
        results.append(measure(setting, options.peer, options.peer_python, lambda text: print(text, file=sys.stderr)))
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} threads"
    report = {"device": options.device, "on": name, "torch": torch.__version__, "peer": options.peer, "shapes": results}
    if options.json:
        print(json.dumps(report, indent=1))
        return
    for one in results:
        peak = f"{one['peak_flops'] / 1e9:.0f} GFLOP/s, {one['peak']}"
        print(f"{one['shape']['name']} ({options.device}, {name}; peak {peak})")
        for side in ("ours", options.peer):
            found = one[side]
            print(f"  {side:<13}{found['tokens_per_second']:>12,.0f} tokens/s   {found['peak_share']:.1%} of the peak")
        print(f"  ratio {one['ratio']} (of the fastest steps: {one['ratio_of_fastest']})")


if __name__ == "__main__":
    main()
