"""The parts of a run's evaluation: held-out text, or one benchmark, asked of one checkpoint by a pure function.

Which checkpoints are asked, and all that the answers depend on, is said here too.
"""

from collections.abc import Mapping, Sequence
from math import log1p
from pathlib import Path
from typing import Any

from pico.checkpoint import MANIFEST, Checkpoint
from pico.data.tokens.loader import heldout_rows
from pico.data.tokens.tokenizer import load_tokenizer, tokenizer_meta
from pico.evaluation.answer import Answerer
from pico.evaluation.perplexity import heldout_scores
from pico.files import read_json, sha256_file
from pico.identity import device_name, identity
from pico.model import load_decoder


def choose_steps(steps: Sequence[int], count: int) -> list[int]:
    """Returns at most `count` of `steps`, ascending.

    One alone is the last; of two or more, the first and the last are two. The others are those nearest, in log(1 +
    step), to evenly spaced marks between these two: early training, where most changes, gets as much room as late
    training. Never fewer than asked for while there are enough steps.
    """
    left = sorted(set(steps))
    if count < 1:
        raise ValueError(f"count = {count}: at least one checkpoint is chosen")
    if len(left) <= count:
        return left
    if count == 1:
        return left[-1:]
    first, last = left[0], left[-1]
    chosen = [first, last]
    left = left[1:-1]
    for mark in range(1, count - 1):
        target = log1p(first) + (log1p(last) - log1p(first)) * mark / (count - 1)
        nearest = min(left, key=lambda step: (abs(log1p(step) - target), step))
        left.remove(nearest)
        chosen.append(nearest)
    return sorted(chosen)


def answers_identity(
    chosen: Sequence[Checkpoint],
    tokens: Path,
    requests: Mapping[str, Mapping[str, Sequence[tuple]]],
    *,
    device: str,
    batch_size: int,
) -> dict[str, Any]:
    """Returns all that the answers depend on; arguments as for `evaluate_part`, requests by benchmark."""
    data = [*tokens.glob("heldout/*.parquet"), *tokens.glob("tokenizer/*.json")]
    return {
        "checkpoints": {checkpoint.step: read_json(checkpoint.folder / MANIFEST) for checkpoint in chosen},
        "data": {path.relative_to(tokens).as_posix(): sha256_file(path) for path in sorted(data)},
        "requests": dict(requests),
        "batch_size": batch_size,
        "device": device_name(device),
        **identity(__name__),
    }


def evaluate_part(
    checkpoint: Path, tokens: Path, device: str, requests: Mapping[str, Sequence[tuple]] | None, batch_size: int
) -> dict[str, Any]:
    """Evaluates one checkpoint on one part; tokens: the folder `data/tokens`; device: "cpu" or "cuda".

    Returns the answers by kind of request, in the order of the requests; without requests, the `heldout` entry of
    results.json.
    """
    model = load_decoder(Checkpoint(checkpoint)).to(device)
    if requests is None:
        heldout = {domain: (rows, int(n_bytes.sum())) for domain, (rows, n_bytes) in heldout_rows(tokens).items()}
        return heldout_scores(model, heldout)
    tokenizer, eos_id = load_tokenizer(tokens / "tokenizer"), tokenizer_meta(tokens / "tokenizer")["eos_id"]
    answerer = Answerer(model, tokenizer, eos_id, batch_size=batch_size)
    return {kind: answerer.answer(kind, arguments) for kind, arguments in sorted(requests.items())}
