"""Each side in a process of its own. A side is a generator: asked for the seconds of the next step, it takes it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import torch
from train_sides.ours import ours
from train_sides.peers import litgpt, transformers
from train_sides.shapes import Setting, Shape

SCRIPT = Path(__file__).resolve().parent.parent / "train_speed.py"
ROOT = SCRIPT.parent.parent


SIDES: dict[str, Callable[[Setting], Iterator[float]]] = {"ours": ours, "transformers": transformers, "litgpt": litgpt}


def serve(told: str) -> None:
    """A side's process: for each line that comes in, one step, and its seconds as a line."""
    values = json.loads(told)
    side, setting = values.pop("side"), Setting(**{**values, "shape": Shape(**values["shape"])})
    torch.set_num_threads(setting.threads)
    steps = SIDES[side](setting)
    for _ in sys.stdin:
        print(json.dumps(next(steps)), flush=True)


@contextmanager
def process(python: str, side: str, setting: Setting) -> Iterator[Callable[[], float]]:
    """A side in a process of its own; the function takes a step there. Ends ours where that one ended."""
    told = json.dumps({"side": side, **setting._asdict(), "shape": asdict(setting.shape)})
    with subprocess.Popen(
        [python, str(SCRIPT), "--serve", told], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
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
    path = os.environ.get("PYTHONPATH")
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **quiet, "PYTHONPATH": f"{ROOT}{':' + path if path else ''}"}
