"""`pico capture` and `pico analyze`: learning dynamics of checkpoints that are there already, and their table.

A checkpoint of a pico run is captured on the rows that its own training captures it on, which is found in its
trainer.json: the result is then bit for bit what training wrote, or would have written. All else, and whatever is
given a text, is captured on one fixed batch (see pico.capture.run).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pico.analysis.engine.components import get_component
from pico.analysis.engine.plugins import load_metric_files
from pico.analysis.engine.run import analysis_folder, analyze_run
from pico.analysis.engine.table import read_table
from pico.analysis.metrics.registry import STATES, default_metrics, get_metric
from pico.capture.places import Place
from pico.capture.run import Settings, capture_identity, capture_into, captured_run, device
from pico.checkpoint import MANIFEST, Checkpoint, step_name, verify, write_checkpoint
from pico.errors import PicoError
from pico.files import canonical_json, full_disk_named, read_json, sha256_file, write_atomic, write_json
from pico.identity import device_name, identity
from pico.model.decoder import load_decoder
from pico.plugins import UserFile, file_hashes
from pico.train.batches import Batches
from pico.train.capture import capture_splits
from pico.train.parallel import reproducible
from pico.train.spec import RunSpec, data_identity

CAPTURE = "capture.json"
"""Says what was captured, on what; it marks a folder that an interrupted capture goes on in."""
ANALYSIS = "analysis.json"
"""Says what the table is of; it marks a folder as one that may be replaced."""


@dataclass(frozen=True)
class Own:
    """Settings of a capture of a pico run, where they are not those of its training."""

    layers: list[str] | None = None
    """Suffixes of module names."""
    batch_size: int | None = None
    positions: int | None = None


def capture_place(
    place: Place,
    out: Path,
    settings: Settings,
    own: Own,
    tokens: Path,
    report: Callable[[int, int], None] | None = None,
) -> list[Checkpoint]:
    """Captures every checkpoint of `place`, as `pico capture` does; returns those of `out/checkpoints`.

    `own` and `tokens` (the folder of tokens that the run was trained on) are for pico runs without a text, `settings`
    for all else. An interrupted capture goes on with the first step that is not there. Raises PicoError for what cannot
    be read, for tokens that are not those of the training, and where `out` holds anything else.
    """
    if place.kind != "pico" or settings.text is not None:
        _claim(out, capture_identity(place, settings))
        with full_disk_named(out):
            capture_into(out, place, settings, report)
    else:
        _capture_own(place, out, own, tokens, report)
    return [Checkpoint(out / "checkpoints" / step_name(step)) for step in place.folders]


def default_name(place: Place) -> str:
    """Returns what the checkpoints are called by default: the model's name in its settings, or the folder's."""
    trainer = Checkpoint(next(iter(place.folders.values()))).trainer if place.kind == "pico" else {}
    return trainer["identity"]["settings"]["model"] if "identity" in trainer else place.name


def _capture_own(place: Place, out: Path, own: Own, tokens: Path, report: Callable[[int, int], None] | None) -> None:
    folders = list(place.folders.values())
    spec = _spec(folders[0], own)
    data = data_identity(tokens)
    for folder in folders:
        trained_on = Checkpoint(folder).trainer["identity"]["data"]
        if differing := sorted(one for one in trained_on.keys() | data.keys() if trained_on.get(one) != data.get(one)):
            raise PicoError(
                f"these are not the tokens that {folder} was trained on: {differing[0]} differs",
                mend="name their folder with --tokens, or a text to capture on with --text",
            )
    models = {str(step): sha256_file(folder / "model.safetensors") for step, folder in place.folders.items()}
    where = "cpu" if spec.training.device == "cpu" else device()
    about = {"checkpoints": models, "data": data, "own": asdict(own), "device": device_name(where)}
    _claim(out, about | identity("pico.train.capture"))
    batches = Batches(spec, tokens)
    for done, (step, folder) in enumerate(place.folders.items()):
        target = out / "checkpoints" / step_name(step)
        if not (target / MANIFEST).exists():
            _capture_one(verify(folder), batches, target, where)
        if report:
            report(done + 1, len(folders))


def _capture_one(checkpoint: Checkpoint, batches: Batches, target: Path, where: str) -> None:
    """Captures one checkpoint as its training does: its rows, threads, precision and kind of device."""
    training = batches.spec.training
    precision = partial(torch.autocast, where, torch.bfloat16, enabled=training.precision == "bf16")
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


def _spec(folder: Path, own: Own) -> RunSpec:
    """Returns the specification that a checkpoint was trained by, but for what `own` says."""
    trainer = Checkpoint(folder).trainer
    if "identity" not in trainer:
        raise PicoError(
            f"{folder} does not say on what it was trained: it was captured from another model",
            mend="name the run that training left, or a text to capture on with --text",
        )
    settings: dict[str, Any] = trainer["identity"]["settings"]
    # how often rescue checkpoints were written is no part of what a checkpoint says, and of no matter here
    spec = RunSpec.from_dict({**settings, "checkpoints": {**settings["checkpoints"], "rescue_seconds": 60.0}})
    chosen = {name: value for name, value in asdict(own).items() if value is not None}
    return replace(spec, learning_dynamics=spec.learning_dynamics.model_copy(update=chosen))


def _claim(out: Path, what: dict[str, Any]) -> None:
    """Makes `out`, or goes on in it where it is of the same capture. Raises PicoError where it holds anything else."""
    what = json.loads(canonical_json(what))  # as it is read back
    if (out / CAPTURE).is_file():
        if read_json(out / CAPTURE) != what:
            raise PicoError(f"{out} holds the capture of other checkpoints, or with other settings or code",
                            mend="name another folder with --out, or delete it")  # fmt: skip
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PicoError(f"{out} exists, and is not an earlier capture", mend="name another folder with --out")
    with full_disk_named(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / CAPTURE, what)


Report = Callable[[str, int, int], None]
"""Called with (`capture` or `measure`, done, in all) after every checkpoint or task."""


def analyze_place(
    place: Place,
    settings: Settings,
    out: Path,
    *,
    name: str,
    metrics: Sequence[str] | None = None,
    components: Sequence[str] = ("simple", "ov_circuit"),
    files: Sequence[UserFile] = (),
    root: Path = Path("runs"),
    report: Report | None = None,
) -> tuple[int, Path]:
    """Captures what is needed, measures it, and writes `out/step_*.parquet`, as `pico analyze` does.

    Returns the number of the table's rows, and the run that was measured, in pico's layout: the place itself, or what
    was captured of another model. The table is that of a run (see pico.analysis.engine.table). metrics: None for the
    default ones. Working state is below `root`: an interrupted analysis goes on there, and other metrics of the same
    checkpoints find their states captured. Raises PicoError for unknown names, for what cannot be read, and where `out`
    holds anything but an earlier analysis.
    """
    if out.exists() and not (out / ANALYSIS).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise PicoError(f"{out} exists, and is not an earlier analysis", mend="name another folder with --out")
    load_metric_files(files)
    metrics = default_metrics(STATES) if metrics is None else metrics
    for metric in metrics:
        get_metric(metric)
    for component in components:
        get_component(component)
    run, layers = captured_run(place, settings, root, partial(report, "capture") if report else None)
    work = analysis_folder(run, name, metrics, components, root, layers=layers, files=files, device=device())
    written = analyze_run(
        run,
        name,
        metrics,
        components,
        work,
        layers=layers,
        files=files,
        device=device(),
        report=partial(report, "measure") if report else None,
    )
    about = {
        "name": name,
        "kind": place.kind,
        "steps": list(place.folders),
        "layers": layers,
        "metrics": list(metrics),
        "components": list(components),
        "files": file_hashes(files),
    }
    with full_disk_named(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / ANALYSIS, about)
        for stale in sorted({path.name for path in out.glob("step_*.parquet")} - {path.name for path in written}):
            (out / stale).unlink()
        for path in written:
            write_atomic(out / path.name, path.read_bytes())
    return int(read_table(out).num_rows), run
