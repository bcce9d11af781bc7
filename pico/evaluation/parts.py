"""One part of the evaluation of one checkpoint, held-out text or one benchmark: a pure function, for any process."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pico.checkpoint import Checkpoint
from pico.data.tokens.loader import heldout_rows
from pico.data.tokens.tokenizer import load_tokenizer, tokenizer_meta
from pico.evaluation.answer import Answerer
from pico.evaluation.perplexity import heldout_scores
from pico.model import load_decoder


def evaluate_heldout(checkpoint: Path, tokens: Path, device: str) -> dict[str, dict[str, float | int]]:
    """The `heldout` entry of results.json. tokens: the folder `data/tokens`; device: "cpu" or "cuda"."""
    heldout = {domain: (rows, int(n_bytes.sum())) for domain, (rows, n_bytes) in heldout_rows(tokens).items()}
    return heldout_scores(load_decoder(Checkpoint(checkpoint)).to(device), heldout)


def answer_requests(
    checkpoint: Path, tokens: Path, device: str, requests: Mapping[str, Sequence[tuple]], batch_size: int
) -> dict[str, list[Any]]:
    """What the checkpoint says to each request: kind of request -> answers, in the order of the requests."""
    tokenizer = load_tokenizer(tokens / "tokenizer")
    eos_id = tokenizer_meta(tokens / "tokenizer")["eos_id"]
    model = load_decoder(Checkpoint(checkpoint)).to(device)
    answerer = Answerer(model, tokenizer, eos_id, batch_size=batch_size)
    return {kind: answerer.answer(kind, arguments) for kind, arguments in sorted(requests.items())}


def evaluate_part(
    checkpoint: Path, tokens: Path, device: str, requests: Mapping[str, Sequence[tuple]] | None, batch_size: int
) -> dict[str, Any]:
    """`answer_requests`, or `evaluate_heldout` where there are none."""
    if requests is None:
        return evaluate_heldout(checkpoint, tokens, device)
    return answer_requests(checkpoint, tokens, device, requests, batch_size)
