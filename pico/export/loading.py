"""Loads an exported folder the way its users do, without the progress bars."""

from pathlib import Path
from typing import Any

import torch


def load_exported(folder: Path) -> Any:
    """The folder's model in float32 and eval mode, whatever type its weights are stored in."""
    from transformers import AutoModelForCausalLM  # slow to import, so only where it is used
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    finally:
        if shown:
            logging.enable_progress_bar()
