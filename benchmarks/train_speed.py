"""How fast a model trains beside a peer: `python benchmarks/train_speed.py [--peer transformers|litgpt] [--json]`.

The same shape, batch, precision and hardware, in one run: each side is a process of its own, and they take steps in
turn, so that whatever else the machine does disturbs both. Reported are medians, and the fastest steps.

- ours: `pico.train.loop.train` itself, rows read from token shards, with losses read back, checked and recorded.
- transformers: LlamaForCausalLM with scaled_dot_product_attention, its own loss, and fused AdamW.
- litgpt: GPT with the settings of Llama, its chunked_cross_entropy, and fused AdamW.

Peers are given their batch once, ready on the device. All sides clip gradients; on CUDA all run in bf16 by autocast
over fp32 weights and are compiled by torch.compile, on a CPU in fp32 and eager. `peak_share` is the share of the
machine's peak (see pico.model.flops) that goes into the model's products: of published bf16 FLOP/s on CUDA, where it is
MFU; on a CPU of the fastest fp32 product, measured here before and after.

litgpt's dependencies do not fit pico's, so it has an environment of its own:
    python -m venv litgpt-env && litgpt-env/bin/pip install litgpt==0.5.13 torch==2.13.0
    python benchmarks/train_speed.py --peer litgpt --peer-python litgpt-env/bin/python
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
LR, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0


@dataclass(frozen=True)
class Shape:
    """A Llama-like model and its batch."""

    name: str
    d_model: int
    n_layers: int
    vocab_size: int
    n_heads: int
    n_kv_heads: int
    hidden: int
    batch: int
    seq_len: int

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.batch * self.seq_len


SHAPES: dict[str, tuple[Shape, ...]] = {
    "laptop": (
        Shape("d192", 192, 6, 4096, 12, 4, 768, 16, 256),
        Shape("d96", 96, 12, 50304, 12, 4, 384, 4, 512),
    ),
    "paper": tuple(
        Shape(name, width, 12, 50304, 12, 4, 4 * width, 16, 2048)
        for name, width in (("tiny", 96), ("small", 384), ("medium", 768), ("large", 1536))
    ),
    "test": (Shape("d32", 32, 2, 128, 4, 2, 64, 2, 16),),
}


class Setting(NamedTuple):
    """How a side runs its shape."""

    shape: Shape
    device: str
    threads: int
    steps: int

    @property
    def cuda(self) -> bool:
        """Whether it runs on CUDA: in bf16 and compiled, then."""
        return self.device == "cuda"


Step = Callable[[], None]


# Each side is a generator: it takes a step whenever it is asked for the seconds of the next one.


def ours(setting: Setting) -> Iterator[float]:
    """Steps of pico.train. It asks before every step whether to stop; there it waits for the next one to be wanted."""
    import threading

    from pico.train.loop import train
    from pico.train.spec import identity

    # Checkpoints are written at steps 0, 1, 2, 4, ...: the steps that are timed lie between two of them.
    first = 1 << max(3, setting.steps.bit_length())
    asked, answered = threading.Semaphore(0), threading.Semaphore(0)
    seconds: list[float] = []
    ended: list[BaseException] = []
    step, started = 0, 0.0

    def stop() -> bool:
        nonlocal step, started
        now = _now(setting)
        if step > first:
            seconds.append(now - started)
            answered.release()
        if step >= first:
            if step == first:  # a checkpoint that is written beside training would be timed, too
                while not (work / "model" / "checkpoints" / f"step_{first:08d}" / "manifest.json").exists():
                    time.sleep(0.01)
            asked.acquire()
            started = _now(setting)
        step += 1
        return step > first + setting.steps

    with tempfile.TemporaryDirectory() as folder:
        tokens, work = _tokens(Path(folder, "tokens"), setting.shape), Path(folder, "work")
        work.mkdir()
        spec = _spec(setting, 2 * first)

        def body() -> None:
            from pico.train.world import World

            try:
                train(
                    spec,
                    tokens,
                    work,
                    identity(spec, tokens),
                    world=World(device=torch.device(setting.device)),
                    stop=stop,
                )
            except BaseException as error:
                ended.append(error)
                answered.release()

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        for _ in range(setting.steps):
            asked.release()
            answered.acquire()
            if ended:
                raise ended[0]
            yield seconds[-1]
        asked.release()
        thread.join()


def _spec(setting: Setting, steps: int) -> Any:
    from pico.config import Checkpoints, LearningDynamics, Optimizer, Schedule, Training
    from pico.model import DecoderConfig
    from pico.train.spec import RunSpec

    shape = setting.shape
    return RunSpec(
        model=shape.name,
        seed=0,
        decoder=DecoderConfig(
            shape.d_model,
            shape.n_layers,
            shape.vocab_size,
            shape.seq_len,
            shape.n_heads,
            shape.n_kv_heads,
            shape.hidden,
        ),
        training=Training(
            steps=steps,
            batch_size=shape.batch,
            micro_batch_size=shape.batch,
            workers=1,
            threads_per_worker=setting.threads,
            device=setting.device,
            precision="bf16" if setting.cuda else "fp32",
            compile=setting.cuda,
            gradient_clip=CLIP,
            eval_every=steps,
        ),
        optimizer=Optimizer(lr=LR, beta1=BETAS[0], beta2=BETAS[1], eps=1e-8, weight_decay=DECAY),
        schedule=Schedule(kind="constant", warmup_steps=1, final_fraction=1.0),
        checkpoints=Checkpoints(every=1 << 30, rescue_seconds=1e9),
        learning_dynamics=LearningDynamics(layers=[], batch_size=8, positions=1),
    )


def _tokens(folder: Path, shape: Shape) -> Path:
    """Random rows in the layout of data/tokens."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pico.files import write_json

    def write(path: Path, rows: int, **columns: Any) -> None:
        path.parent.mkdir(parents=True)
        ids = torch.randint(0, shape.vocab_size, (rows, shape.seq_len + 1), generator=torch.Generator().manual_seed(0))
        lists = pa.array(ids.tolist(), type=pa.list_(pa.int32()))
        pq.write_table(
            pa.table({"input_ids": lists, **{name: [value] * rows for name, value in columns.items()}}), path
        )

    write(folder / "train" / "train-00000-of-00001.parquet", 4 * shape.batch)
    write(folder / "heldout" / "text.parquet", 1, n_bytes=shape.seq_len)
    write(folder / "tinsy" / "text.parquet", 1, n_bytes=shape.seq_len)
    write_json(folder / "provenance.json", {})
    return folder


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
        started = _now(setting)
        step()
        yield _now(setting) - started


def _now(setting: Setting) -> float:
    if setting.cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


SIDES: dict[str, Callable[[Setting], Iterator[float]]] = {"ours": ours, "transformers": transformers, "litgpt": litgpt}


def serve(side: str, setting: Setting) -> None:
    """A side's process: for each line that comes in, one step, and its seconds as a line."""
    torch.set_num_threads(setting.threads)
    steps = SIDES[side](setting)
    for _ in sys.stdin:
        print(json.dumps(next(steps)), flush=True)


@contextmanager
def process(python: str, side: str, setting: Setting) -> Iterator[Callable[[], float]]:
    """A side in a process of its own; the function takes a step there. Ends ours where that one ended."""
    told = json.dumps({"side": side, **setting._asdict(), "shape": asdict(setting.shape)})
    with subprocess.Popen(
        [python, __file__, "--serve", told], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env=_environment(),
    ) as running:  # fmt: skip
        assert running.stdin
        assert running.stdout

        def step() -> float:
            with suppress(BrokenPipeError):
                running.stdin.write("\n")
                running.stdin.flush()
            line = running.stdout.readline()
            if not line:
                raise SystemExit(f"the process of {side} ended; its own message is above")
            return float(line)

        try:
            yield step
        finally:
            with suppress(BrokenPipeError):
                running.stdin.close()
            running.wait(timeout=120)


def _environment() -> dict[str, str]:
    import os

    path = os.environ.get("PYTHONPATH")
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **quiet, "PYTHONPATH": f"{ROOT}{':' + path if path else ''}"}


def measure(setting: Setting, peer: str, peer_python: str, report: Callable[[str], None]) -> dict[str, Any]:
    """Both sides of one shape, a step each in turn."""
    from pico.model import DecoderConfig
    from pico.model.flops import find_peak, training_flops_per_token

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
        told = json.loads(options.serve)
        serve(told.pop("side"), Setting(**{**told, "shape": Shape(**told["shape"])}))
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
