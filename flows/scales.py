"""Composes the Hydra groups of conf/ into params.yaml, byte for byte as `dvc exp run -S scale=NAME` does."""

import tempfile
from pathlib import Path

from ruamel.yaml import YAML

from pico.config import Params, parse_params
from pico.errors import PicoError
from pico.files import write_atomic


def scale_names(root: Path) -> list[str]:
    """The scales that conf/scale/ defines."""
    return sorted(path.stem for path in (root / "conf" / "scale").glob("*.yaml"))


def compose(root: Path, scale: str, overrides: list[str]) -> tuple[Params, str]:
    """The checked settings of a scale with Hydra overrides applied, and the text of their params.yaml.

    Raises PicoError for an unknown scale, an override that Hydra refuses, and settings that do not fit together.
    """
    from dvc.utils.hydra import compose_and_dump
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    names = scale_names(root)
    if scale not in names:
        raise PicoError(f"there is no scale {scale!r}", where="conf/scale/", mend=f"choose one of: {', '.join(names)}")
    root, applied = root.resolve(), [f"scale={scale}", *overrides]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "params.yaml")
        try:
            compose_and_dump(str(output), str(root / "conf"), None, "config", str(root), applied)
        except (HydraException, OmegaConfBaseException) as error:
            raise PicoError(
                f"the settings cannot be composed: {str(error).strip()}",
                where=f"conf/, {' '.join(applied)}",
                mend="write overrides as key=value with keys of params.yaml (pico params shows them)",
            ) from error
        text = output.read_text(encoding="utf-8")
    values = YAML(typ="safe", pure=True).load(text)
    try:
        return parse_params(values, where="the composed settings"), text
    except PicoError as error:
        mend = f"change the overrides, or conf/scale/{scale}.yaml; docs/settings.md lists every key"
        raise PicoError(error.what, where=f"conf/, {' '.join(applied)}", mend=mend) from None


def write_params(root: Path, text: str) -> bool:
    """Replaces params.yaml in one step; leaves an equal one untouched. Gives whether it changed."""
    path = root / "params.yaml"
    if path.is_file() and path.read_bytes() == text.encode():
        return False
    write_atomic(path, text)
    return True
