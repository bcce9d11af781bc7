"""The behaviour of one checkpoint: a pure function of files, for any worker; see pico.spread."""

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pico.analysis.engine.layer import Row
from pico.behaviour.measure import Compared, measure_behaviour, spread_evenly
from pico.behaviour.ngrams import NGrams
from pico.behaviour.settings import BehaviourSettings
from pico.checkpoint import Checkpoint
from pico.data.tokens.loader import TokenRows, heldout_rows
from pico.files import read_json, sha256_file
from pico.model import Decoder, load_decoder


@dataclass(frozen=True)
class BehaviourTask:
    """What one call measures. Plain values, so that it travels to any worker."""

    run: str
    """The model's name, as the table has it."""
    folder: Path
    """The checkpoint."""
    tokens: Path
    """`data/tokens/`: held-out rows, training rows and the tokenizer's end of text."""
    targets: dict[str, Path] = field(default_factory=dict)
    """"last", "previous" -> a checkpoint of the same run, for kl_to_checkpoint."""
    seeds: dict[str, Path] = field(default_factory=dict)
    """Name of a run with another seed -> its checkpoint, for kl_to_seed."""
    settings: BehaviourSettings = field(default_factory=BehaviourSettings)
    device: str = "cpu"
    """Where the model runs: "cpu" or "cuda"."""


def identity(tokens: Path, settings: BehaviourSettings) -> dict[str, Any]:
    """All that the rows depend on besides the checkpoints: settings, tokens and code."""
    package = Path(__file__).parents[1]
    paths = [package / "data" / "loader.py", *package.glob("behaviour/*.py"), *package.glob("model/*.py")]
    data = [tokens / "provenance.json", *tokens.glob("train/*.parquet"), *tokens.glob("heldout/*.parquet")]
    return {
        "settings": asdict(settings) | {"metrics": sorted(settings.metrics)},
        "data": {path.relative_to(tokens).as_posix(): sha256_file(path) for path in sorted(data)},
        "code": {path.relative_to(package).as_posix(): sha256_file(path) for path in sorted(paths)},
    }


def measure_checkpoint(task: BehaviourTask) -> list[Row]:
    """The rows of one checkpoint; see `measure_behaviour`. Raises PicoError for missing or unreadable files.

    Memory: the checkpoint, one other at a time, and the counts of `ngram_rows` training rows.
    """
    checkpoint, settings = Checkpoint(task.folder), task.settings
    decoder = _load(checkpoint, task.device)
    training = TokenRows(task.tokens / "train")
    counted = training.rows(spread_evenly(np.arange(training.n_rows), settings.ngram_rows))
    first = training.rows(np.arange(min(training.n_rows, max(settings.memorised_rows, settings.landscape_rows))))
    others = [("kl_to_checkpoint", name, folder) for name, folder in sorted(task.targets.items())]
    others += [("kl_to_seed", name, folder) for name, folder in sorted(task.seeds.items())]
    return measure_behaviour(
        decoder,
        np.concatenate([rows for rows, _ in heldout_rows(task.tokens).values()]),
        run=task.run,
        step=checkpoint.step,
        tokens=int(checkpoint.trainer["tokens"]),
        training_rows=first,
        ngrams=NGrams(counted, decoder.config.vocab_size),
        compared=[
            Compared(metric, partial(_load, Checkpoint(folder), task.device), Checkpoint(folder).step, name)
            for metric, name, folder in others
            if metric in settings.metrics
        ],
        exclude=(int(read_json(task.tokens / "tokenizer" / "meta.json")["eos_id"]),),
        settings=settings,
    )


def _load(checkpoint: Checkpoint, device: str) -> Decoder:
    return load_decoder(checkpoint).to(device)
