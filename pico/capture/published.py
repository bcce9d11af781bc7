"""Checkpoints in the published Pico layout: weights named `pico_decoder.*`, and states captured during training.

    config.json model.safetensors tokenizer.json
    learning_dynamics/{train,val}_{activations,gradients}.pt    module name -> tensor

The published states exist as .pt files only. They are read by torch's restricted unpickler (weights_only=True), which
runs no code; whatever is not a mapping of names to tensors is refused. A test holds it to that with a hostile file.
"""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pico.analysis.engine.choices import SPLITS
from pico.checkpoint import read_tensors
from pico.errors import PicoError
from pico.files import read_json
from pico.model import Decoder, DecoderConfig
from pico.model.decoder import load_weights

PREFIX = "pico_decoder."


def read_config(folder: Path) -> DecoderConfig:
    """Returns the shape that config.json gives among other keys. Raises PicoError for missing ones."""
    values = read_json(folder / "config.json")
    known = {field.name for field in fields(DecoderConfig)}
    return DecoderConfig.from_dict({name: value for name, value in values.items() if name in known})


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Returns the parameters without their prefix, from model.safetensors or all its shards."""
    paths = sorted(folder.glob("model*.safetensors"))
    if paths:
        found = {name: tensor for path in paths for name, tensor in read_tensors(path).items()}
    elif (folder / "pytorch_model.bin").is_file():
        found = load_tensors(folder / "pytorch_model.bin")
    else:
        raise PicoError(f"{folder} has no model.safetensors", mend="name a folder with weights")
    return {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}


def read_dynamics(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Returns the captured states under the names of our files: {"val_activations": {"layers.0...": ...}, ...}.

    {} where none were captured. Gradients are given parameter names. Wrappers' prefixes of the modules' names go.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for split in SPLITS:
        for kind, ending in (("activations", ""), ("gradients", ".weight")):
            path = folder / "learning_dynamics" / f"{split}_{kind}.pt"
            if path.is_file():
                tensors = {_name(name, path): tensor for name, tensor in load_tensors(path).items()}
                found[f"{split}_{kind}"] = {f"{name}{ending}": tensor for name, tensor in tensors.items()}
        if (f"{split}_activations" in found) != (f"{split}_gradients" in found):
            raise PicoError(
                f"{folder / 'learning_dynamics'} has not both activations and gradients of {split}",
                mend="fetch both files, or capture the states anew: --text FILE",
            )
    return found


def load_decoder(folder: Path) -> Decoder:
    """Returns the model, float32 and in eval mode. Raises PicoError where weights and configuration do not fit."""
    model = Decoder(read_config(folder))
    load_weights(model, {name: tensor.float() for name, tensor in read_weights(folder).items()}, where=str(folder))
    return model.eval()


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a .pt or .bin file; nothing else is unpickled. Raises PicoError for anything else."""
    mend = "only files that torch.load reads with weights_only=True are opened; export others to safetensors"
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, OSError, ...
        raise PicoError(f"{path} cannot be read: {str(error).splitlines()[0]}", mend=mend) from error
    if not isinstance(found, dict) or not all(isinstance(one, Tensor) for one in found.values()):
        raise PicoError(f"{path} is not a mapping of names to tensors", mend=mend)
    return found


def _name(name: str, path: Path) -> str:
    match = re.search(r"layers\.\d+\..+", name)
    if not match:
        raise PicoError(
            f"{path}: {name!r} is not a module of a layer", mend="expected are names like layers.0.attention.v_proj"
        )
    return match[0]
