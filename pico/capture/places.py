"""Places of checkpoints: the kind and steps of what a path, or an id of the hub, holds."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pico.checkpoint import MANIFEST
from pico.errors import PicoError
from pico.files import read_json

Kind = Literal["pico", "published", "hugging_face"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
STEP = re.compile(r"(?:step|checkpoint)[-_]?(\d+)", re.IGNORECASE)
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "learning_dynamics/*.pt")
"""Patterns of what is fetched from the hub: configuration, weights, tokenizers and captured states; no code."""


@dataclass(frozen=True)
class Place:
    """Checkpoints of one model, in order of step."""

    name: str
    kind: Kind
    folders: dict[int, Path]
    """Step -> the checkpoint's folder."""


def find(target: str, revisions: Sequence[str] = ()) -> Place:
    """Finds out what `target` is: a folder, or else `owner/name` on the hub, whose `revisions` are fetched.

    A folder is one checkpoint (it holds config.json) or holds several (below it, or below its checkpoints/), whose
    names give the steps: `step1000`, `step_00001000`, `checkpoint-1000`. So do revisions; `REVISION=STEP` says the step
    of one whose name does not. Raises PicoError where there is nothing, or the steps cannot be told.
    """
    path = Path(target)
    if path.exists():
        if revisions:
            raise PicoError(f"{target} is a folder, which has no revisions", mend="leave --revision out")
        folders = _checkpoint_folders(path)
        name = path.resolve().name
    elif HUB_ID.fullmatch(target) and not (path.parts and Path(path.parts[0]).exists()):
        folders = fetch(target, revisions or ["main"])
        name = target.split("/")[1]
    else:
        raise PicoError(f"{target} does not exist", mend="name a folder, or owner/name of a model on the hub")
    kinds = {_kind(folder) for folder in folders.values()}
    if len(kinds) > 1:
        raise PicoError(
            f"{target} holds checkpoints of several kinds: {', '.join(sorted(kinds))}", mend="name one of them"
        )
    return Place(name, kinds.pop(), dict(sorted(folders.items())))


def _checkpoint_folders(path: Path) -> dict[int, Path]:
    if (path / "config.json").is_file():
        return steps({path.resolve().name: path}, str(path))
    parent = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = {
        one.name: one
        for one in sorted(parent.iterdir())
        if not one.is_symlink() and not one.name.startswith(".") and (one / "config.json").is_file()
    }  # a link, such as `latest`, would be the same checkpoint once more
    if not found:
        raise PicoError(
            f"{path} holds no checkpoint: neither it nor its folders have a config.json",
            mend="name a pico run, or a folder that AutoModelForCausalLM can load",
        )
    return steps(found, str(parent))


def steps(named: dict[str, Path], where: str) -> dict[int, Path]:
    """Returns step -> folder, from names; a single one that names no step has step 0."""
    found: dict[int, Path] = {}
    for name, folder in named.items():
        match = re.search(r"=(\d+)$", name) or STEP.search(name)
        if not match and len(named) > 1:
            raise PicoError(
                f"{name!r} names no step", where=where, mend="name steps as step1000 (or, of revisions, REVISION=1000)"
            )
        step = int(match[1]) if match else 0
        if step in found:
            raise PicoError(f"{name!r} is step {step}, which another one is, too", where=where, mend="leave one out")
        found[step] = folder
    return found


def _kind(folder: Path) -> Kind:
    config: Any = read_json(folder / "config.json")
    if (folder / MANIFEST).is_file():
        return "pico"
    published = config.get("model_type") == "pico_decoder" or "attention_n_kv_heads" in config
    return "published" if published else "hugging_face"


def fetch(repository: str, revisions: Sequence[str]) -> dict[int, Path]:
    """Fetches revisions (`step1000`, or `REVISION=STEP`) of a model into the hub's own cache: step -> folder.

    Raises PicoError where one cannot be had.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise PicoError("huggingface_hub is not installed", mend="pip install 'pico-lab[export]'") from None

    found = {}
    for revision in revisions:
        branch = re.sub(r"=\d+$", "", revision)
        try:
            folder = Path(snapshot_download(repository, revision=branch, allow_patterns=list(FILES)))
            if not any(folder.glob("*.safetensors")):
                snapshot_download(repository, revision=branch, allow_patterns=["*.bin"])
        except Exception as error:  # of requests, of the file system, of the hub's own
            raise PicoError(
                f"{repository} at {branch} cannot be fetched: {type(error).__name__}: {str(error).splitlines()[0]}",
                mend="check id and revision, and the network (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE)",
            ) from error
        found[revision] = folder
    return steps(found, repository)
