"""`pico scale`, `params`, `plan`: the settings in force, how they are composed from conf/, and their cost."""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pico.cli.common import AsJson, Group, clone_root
from pico.errors import PicoError
from pico.files import canonical_json, write_atomic

if TYPE_CHECKING:
    from pico.config import Params

PANEL = "Settings and data of a clone"

app = typer.Typer(cls=Group)


@app.command(rich_help_panel=PANEL)
def scale(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A file of conf/scale/, without its ending.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Hydra overrides, such as optimizer.lr=0.001.")
    ] = None,
) -> None:
    """Write params.yaml for a scale, as `dvc exp run -S scale=NAME` does, for plain `dvc repro`."""
    root = clone_root()
    params, text = compose(root, name, overrides or [])
    verb = "now holds" if write_params(root, text) else "already held"
    print(f"params.yaml {verb} scale {name}: models {', '.join(params.suite.models)}")


@app.command(rich_help_panel=PANEL)
def params(
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="Only this part, such as optimizer or models.tiny.")
    ] = None,
) -> None:
    """Check params.yaml, and print the settings in force."""
    root = clone_root()
    from ruamel.yaml import YAML

    from pico.config import load_params

    values: Any = load_params(root / "params.yaml").model_dump(mode="json")
    for part in key.split(".") if key else []:
        if not isinstance(values, dict) or part not in values:
            raise PicoError(f"params.yaml has no setting {key}", mend="see all of them with: pico params")
        values = values[part]
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 120
    if isinstance(values, dict | list):
        yaml.dump(values, sys.stdout)
    else:
        print(values)


@app.command(rich_help_panel=PANEL)
def plan(
    setting: Annotated[
        list[str] | None,
        typer.Option("-S", metavar="KEY=VALUE", help="As for dvc exp run, such as scale=paper; repeatable."),
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="h100, h200, a100-80, ..., or cpu for this machine.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, show_default="training.workers", help="Number of GPUs.")] = None,
    mfu: Annotated[float | None, typer.Option(show_default="0.4, or 0.3 on a CPU", help="Share of the peak.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the cost of training the suite in force: FLOPs, memory, hours, disk; with -S, of settings composed anew.

    The exit status is 1 if a model cannot be trained so; then it says what to change.
    """
    root = clone_root()
    from pico.config import load_params
    from pico.plan.plan import FORMULAS, as_dict, find_hardware, gigabytes, plan_suite, tables

    params = load_params(root / "params.yaml")
    if setting:
        scales = [one.removeprefix("scale=") for one in setting if one.startswith("scale=")]
        others = [one for one in setting if not one.startswith("scale=")]
        params, _ = compose(root, scales[-1] if scales else params.suite.scale, others)
    hardware = find_hardware(gpu, gpus, mfu, params)
    plans = plan_suite(params, hardware)
    if as_json:
        print(canonical_json(as_dict(plans, hardware), indent=1))
    else:
        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else 240)
        for table in tables(plans, hardware):
            console.print(table)
        print(FORMULAS)
        needed, free = sum(one.disk.total for one in plans), shutil.disk_usage(root).free
        if needed > free:
            print(f"The disk of {root} has {gigabytes(free)} free; {gigabytes(needed)} will be needed here.")
    if refusals := [one.refusal for one in plans if one.refusal]:
        raise PicoError("this cannot be trained so:\n" + "\n".join(f"  - {one}" for one in refusals))


def scale_names(root: Path) -> list[str]:
    """Returns the scales that conf/scale/ defines."""
    return sorted(path.stem for path in (root / "conf" / "scale").glob("*.yaml"))


def compose(root: Path, scale: str, overrides: list[str]) -> "tuple[Params, str]":
    """Composes the Hydra groups of conf/ for a scale, byte for byte as `dvc exp run -S scale=NAME -S ...` does.

    Returns the checked settings and the text of their params.yaml. Raises PicoError for an unknown scale, an override
    that Hydra refuses, and settings that do not fit together.
    """
    from dvc.utils.hydra import compose_and_dump
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from ruamel.yaml import YAML

    from pico.config import parse_params

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
    """Replaces params.yaml in one step; leaves an equal one untouched. Returns whether it changed."""
    path = root / "params.yaml"
    if path.is_file() and path.read_bytes() == text.encode():
        return False
    write_atomic(path, text)
    return True
