"""Makes a run of anybody's checkpoints: one checkpoint folder in pico's format a step, resumable, for the analysis.

A pico run that holds captured states is analysed as it is. Checkpoints in the published layout keep the states that
were captured with them. All else, and whatever is given a text, is run on one fixed batch, the same for every step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pico.analysis.engine.choices import choose_layers
from pico.capture import published
from pico.capture.architectures import KNOWN, architecture_of, shape_of
from pico.capture.hugging_face import RESIDUAL, States, capture_states, load_config, load_model
from pico.capture.places import Place
from pico.capture.text import batch, load_encoder
from pico.checkpoint import MANIFEST, Checkpoint, step_name, write_checkpoint
from pico.errors import PicoError
from pico.files import sha256_file, working_folder
from pico.identity import device_name, identity
from pico.model import Decoder
from pico.model.decoder import load_decoder
from pico.train.capture import activation_metadata, capture

Report = Callable[[int, int], None]
"""Called with (checkpoints captured, checkpoints in all)."""
MODULES = ("attention.v_proj", "attention.o_proj", "swiglu.w_2")
"""Captured by default: what pico's own runs capture."""
SPLIT = "val"
"""The table's name for the batch: nobody trained on it here."""


@dataclass(frozen=True)
class Settings:
    """The choice of what is captured, and on what text."""

    text: Path | None = None
    """UTF-8, or Parquet with input_ids; see pico.capture.text. None: the default text, and for a pico run or published
    checkpoints the states that they hold."""
    tokenizer: Path | None = None
    """The tokenizer's folder; by default the checkpoint's own."""
    mapping: Path | None = None
    """A mapping of an architecture that is not known; see pico.capture.architectures."""
    modules: Sequence[str] = MODULES
    layers: str | Sequence[int] = "all"
    rows: int = 16
    """Sequences of the batch."""
    seq_len: int | None = None
    """Positions of each; by default 128, or the model's context where that is shorter."""
    positions: int = 128
    """Positions per sequence that are kept, evenly spread, the last one among them."""
    micro_batch_size: int = 4
    """Sequences in one forward pass."""
    tokens_per_step: int = 0
    """For the table's column `tokens`, which nothing in a Hugging Face folder tells."""


def captured_run(
    place: Place, settings: Settings, root: Path = Path("runs"), report: Report | None = None
) -> tuple[Path, list[int]]:
    """Returns a run folder (it holds checkpoints/) with the place's states, and the layers that are in it.

    Made below `root`, in a folder named by all that the states depend on; steps that are there are kept. Raises
    PicoError for what cannot be read, and for an architecture that is not known.
    """
    last = list(place.folders.values())[-1]
    if place.kind == "pico" and settings.text is None:
        if last.parent.name != "checkpoints" or len(place.folders) != len(list(last.parent.glob("step_*"))):
            raise PicoError(
                f"{last} is one checkpoint of a pico run", mend="name the run: the folder that holds checkpoints/"
            )
        return last.parent.parent, choose_layers(settings.layers, Checkpoint(last).config["n_layers"])
    run = working_folder("capture", capture_identity(place, settings), root)
    capture_into(run, place, settings, report)
    return run, list(Checkpoint(run / "checkpoints" / step_name(next(reversed(place.folders)))).config["layers"])


def capture_into(run: Path, place: Place, settings: Settings, report: Report | None = None) -> None:
    """Writes `run/checkpoints/step_*` with the states of every checkpoint of the place, on the batch of `settings`.

    Each is written whole or not at all, and those that are there are kept. Raises PicoError as `captured_run`.
    """
    if unknown := sorted(set(settings.modules) - {*KNOWN, RESIDUAL}):
        raise PicoError(f"{unknown[0]!r} is not a module", mend=f"choose from: {', '.join((*KNOWN, RESIDUAL))}")
    read = {"pico": _pico, "published": _published, "hugging_face": _hugging_face}[place.kind]
    for done, (step, folder) in enumerate(place.folders.items()):
        target = run / "checkpoints" / step_name(step)
        if not (target / MANIFEST).exists():
            made = read(folder, settings)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_checkpoint(target, trainer={"step": step, "tokens": step * settings.tokens_per_step}, **made)
        if report:
            report(done + 1, len(place.folders))


_Made = dict[str, Any]
"""One checkpoint, ready to be written: arguments of `write_checkpoint`, all but its trainer."""


def _pico(folder: Path, settings: Settings) -> _Made:
    checkpoint = Checkpoint(folder)
    return _decoder(load_decoder(checkpoint), checkpoint.model(), folder, settings)


def _published(folder: Path, settings: Settings) -> _Made:
    weights = published.read_weights(folder)
    dynamics = published.read_dynamics(folder) if settings.text is None else {}
    if not dynamics:
        return _decoder(published.load_decoder(folder), weights, folder, settings)
    config = published.read_config(folder)
    layers = choose_layers(settings.layers, config.n_layers)
    return {"model": weights, "config": {**config.to_dict(), "layers": layers}, "dynamics": dynamics}


def _decoder(model: Decoder, weights: Mapping[str, Tensor], folder: Path, settings: Settings) -> _Made:
    """States of one of our decoders, captured as training captures them."""
    config = model.config
    layers = choose_layers(settings.layers, config.n_layers)
    rows = _rows(folder, settings, config.max_seq_len, config.vocab_size)
    modules = [module for module in settings.modules if module != RESIDUAL]
    # of our decoder the stream is the sum of what is added to it, which the analysis makes from these
    whole = ["embedding_proj"] if RESIDUAL in settings.modules else []
    captured = capture(
        model.to(device()),
        rows,
        suffixes=[*whole, *(f"layers.{layer}.{module}" for layer in layers for module in modules)],
        positions=settings.positions,
        micro_batch_size=settings.micro_batch_size,
    )
    return _made(config.to_dict(), layers, States(weights, captured.activations, captured.gradients), rows, settings)


def _hugging_face(folder: Path, settings: Settings) -> _Made:
    config = load_config(folder)
    architecture = architecture_of(config.model_type, settings.mapping)
    shape = shape_of(config)
    layers = choose_layers(settings.layers, config.num_hidden_layers)
    context = int(getattr(config, "max_position_embeddings", None) or 2**31)
    rows = _rows(folder, settings, context, config.vocab_size)
    model, stored = load_model(folder, device())
    states = capture_states(
        model,
        architecture,
        rows,
        modules=settings.modules,
        layers=layers,
        positions=settings.positions,
        micro_batch_size=settings.micro_batch_size,
        dtype=stored,
    )
    described = {
        "architecture": config.model_type,
        "d_model": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "vocab_size": config.vocab_size,
        "attention_n_heads": shape.n_heads,
        "attention_n_kv_heads": shape.n_kv_heads,
    }
    return _made(described, layers, states, rows, settings)


def _made(config: Mapping[str, Any], layers: list[int], states: States, rows: Tensor, settings: Settings) -> _Made:
    return {
        "model": states.weights,
        "config": {**config, "layers": layers},
        "dynamics": {f"{SPLIT}_activations": states.activations, f"{SPLIT}_gradients": states.gradients},
        "dynamics_metadata": {f"{SPLIT}_activations": activation_metadata(rows, settings.positions)},
    }


def _rows(folder: Path, settings: Settings, context: int, vocab_size: int) -> Tensor:
    seq_len = settings.seq_len or min(128, context)
    if seq_len > context:
        raise PicoError(f"--seq-len {seq_len} exceeds the model's context of {context}", mend="ask for shorter rows")
    return batch(
        settings.text,
        lambda: load_encoder(settings.tokenizer or folder),
        rows=settings.rows,
        seq_len=seq_len,
        vocab_size=vocab_size,
    )


def device() -> str:
    """Returns the device of models: the GPU, where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def capture_identity(place: Place, settings: Settings) -> dict[str, Any]:
    """Returns all that the states depend on. Paths stand for what they hold."""
    chosen = {name: value for name, value in asdict(settings).items() if not isinstance(value, Path)}
    for name in ("text", "mapping"):
        if path := getattr(settings, name):
            chosen[name] = _sha256(path)
    if settings.tokenizer:
        chosen["tokenizer"] = _hashes(settings.tokenizer, ("*.json", "*.txt", "*.model"))
    patterns = ("*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "learning_dynamics/*.pt")
    return {
        "settings": chosen,
        "checkpoints": {str(step): _hashes(folder, patterns) for step, folder in place.folders.items()},
        "device": device_name(device()),
        **identity(__name__),
    }


def _hashes(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): _sha256(path) for path in paths}


def _sha256(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise PicoError(f"{path} cannot be read: {error.strerror}", mend="correct the path") from None
