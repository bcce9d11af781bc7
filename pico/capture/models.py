"""Loads a Hugging Face causal LM from a folder: no code of others is run, nothing is fetched."""

import json
from pathlib import Path
from typing import Any

import torch

from pico.errors import PicoError


def load_config(folder: Path) -> Any:
    """The transformers configuration of a folder. Raises PicoError for an architecture that transformers lacks."""
    transformers = _transformers()
    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # ValueError, KeyError, OSError, depending on what is wrong with it
        model_type = _model_type(folder)
        raise PicoError(
            f"architecture {model_type!r} is not one that transformers has: {str(error).splitlines()[0]}",
            where=str(folder / "config.json"),
            mend="code that comes with a model is never run; convert it to an architecture of transformers",
        ) from error


def load_model(folder: Path, device: str) -> tuple[Any, torch.dtype]:
    """The model in float32 and eval mode on `device`, and the type in which its weights are stored.

    Raises PicoError where it cannot be loaded, and where weights of it are missing, which transformers would make up.
    """
    transformers = _transformers()
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, dtype="auto", output_loading_info=True
        )
    except Exception as error:  # of transformers, safetensors, torch, the file system
        raise PicoError(
            f"{folder} cannot be loaded as a causal LM: {type(error).__name__}: {str(error).splitlines()[0]}",
            mend="name a folder that AutoModelForCausalLM can load without remote code",
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
    if missing := sorted(loaded["missing_keys"]):
        raise PicoError(
            f"{folder} lacks weights: {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}",
            mend="name a folder with the weights of a causal LM, head included",
        )
    stored = model.dtype
    return model.float().to(device).eval(), stored


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise PicoError("transformers is not installed", mend="pip install 'pico-lab[export]'") from None
    return transformers


def _model_type(folder: Path) -> str | None:
    try:
        return json.loads((folder / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError):
        return None
