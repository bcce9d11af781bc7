"""`pico capture`: learning dynamics of checkpoints that are there already, in the layout that training writes.

A checkpoint of a pico run is captured on the rows that its own training captures it on, which is found in its
trainer.json: what comes out is then bit for bit what training wrote, or would have written. All else, and whatever is
given a text, is captured on one fixed batch (see pico.capture.run).
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pico.capture.places import Place
from pico.capture.run import Report, Settings, capture_into, device, identity
from pico.checkpoint import MANIFEST, Checkpoint, step_name, verify, write_checkpoint
from pico.errors import PicoError
from pico.files import canonical_json, full_disk_named, read_json, sha256_file, write_json
from pico.model.decoder import load_decoder
from pico.train.batches import Batches
from pico.train.capture import capture_splits
from pico.train.parallel import reproducible
from pico.train.spec import RunSpec, data_identity

ABOUT = "capture.json"
"""Says what was captured, on what; it marks a folder that an interrupted capture goes on in."""


@dataclass(frozen=True)
class Own:
    """What is captured of a pico run, where it is not what its settings say."""

    layers: Sequence[str] | None = None
    """Suffixes of module names."""
    batch_size: int | None = None
    positions: int | None = None


def capture_place(
    place: Place, out: Path, settings: Settings, own: Own, tokens: Path, report: Report | None = None
) -> list[Checkpoint]:
    """Captures every checkpoint of `place`; gives those of `out/checkpoints`, whole ones with weights and states.

    `own` and `tokens` (the folder of tokens that the run was trained on) are for pico runs without a text, `settings`
    for all else. An interrupted capture goes on with the first step that is not there. Raises PicoError for what cannot
    be read, for tokens that are not those of the training, and where `out` holds anything else.
    """
    if place.kind != "pico" or settings.text is not None:
        _claim(out, identity(place, settings))
        with full_disk_named(out):
            capture_into(out, place, settings, report)
    else:
        _capture_own(place, out, own, tokens, report)
    return [Checkpoint(out / "checkpoints" / step_name(step)) for step in place.folders]


def default_name(place: Place) -> str:
    """What the checkpoints are called where nobody says: the model's name in its settings, or the folder's."""
    trainer = Checkpoint(next(iter(place.folders.values()))).trainer if place.kind == "pico" else {}
    return trainer["identity"]["settings"]["model"] if "identity" in trainer else place.name


def _capture_own(place: Place, out: Path, own: Own, tokens: Path, report: Report | None) -> None:
    folders = list(place.folders.values())
    spec = _with_own(_spec(folders[0]), own)
    data = data_identity(tokens)
    for folder in folders:
        trained_on = Checkpoint(folder).trainer["identity"]["data"]
        if differing := sorted(one for one in trained_on.keys() | data.keys() if trained_on.get(one) != data.get(one)):
            raise PicoError(
                f"these are not the tokens that {folder} was trained on: {differing[0]} differs",
                mend="name their folder with --tokens, or a text to capture on with --text",
            )
    models = {str(step): sha256_file(folder / "model.safetensors") for step, folder in place.folders.items()}
    _claim(out, {"checkpoints": models, "data": data, "own": asdict(own)})
    batches = Batches(spec, tokens)
    for done, (step, folder) in enumerate(place.folders.items()):
        target = out / "checkpoints" / step_name(step)
        if not (target / MANIFEST).exists():
            _capture_one(verify(folder), batches, target)
        if report:
            report(done + 1, len(folders))


def _capture_one(checkpoint: Checkpoint, batches: Batches, target: Path) -> None:
    """Captures one checkpoint as its training does: its rows, threads, precision and kind of device."""
    training = batches.spec.training
    where = "cpu" if training.device == "cpu" else device()

    def precision() -> AbstractContextManager:
        return torch.autocast(where, torch.bfloat16, enabled=training.precision == "bf16")

    with reproducible(training.threads_per_worker, batches.spec.seed):
        model = load_decoder(checkpoint).to(where)
        dynamics, metadata = capture_splits(model, batches, checkpoint.step, precision)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(
        target,
        model=checkpoint.model(),
        config=checkpoint.config,
        trainer=checkpoint.trainer,
        dynamics=dynamics,
        dynamics_metadata=metadata,
    )


def _spec(folder: Path) -> RunSpec:
    trainer = Checkpoint(folder).trainer
    if "identity" not in trainer:
        raise PicoError(
            f"{folder} does not say on what it was trained: it was captured from another model",
            mend="name the run that training left, or a text to capture on with --text",
        )
    settings: dict[str, Any] = trainer["identity"]["settings"]
    # how often rescue checkpoints were written is no part of what a checkpoint says, and of no matter here
    return RunSpec.from_dict({**settings, "checkpoints": {**settings["checkpoints"], "rescue_seconds": 60.0}})


def _with_own(spec: RunSpec, own: Own) -> RunSpec:
    chosen = {name: value for name, value in asdict(own).items() if value is not None}
    if "layers" in chosen:
        chosen["layers"] = list(chosen["layers"])
    return replace(spec, learning_dynamics=spec.learning_dynamics.model_copy(update=chosen))


def _claim(out: Path, what: dict[str, Any]) -> None:
    """Makes `out`, or goes on in it where it is of the same capture. Raises PicoError where it holds anything else."""
    what = json.loads(canonical_json(what))  # as it is read back
    if (out / ABOUT).is_file():
        if read_json(out / ABOUT) != what:
            raise PicoError(f"{out} holds the capture of other checkpoints, or with other settings or code",
                            mend="name another folder with --out, or delete it")  # fmt: skip
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PicoError(f"{out} exists, and is not an earlier capture", mend="name another folder with --out")
    with full_disk_named(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / ABOUT, what)
