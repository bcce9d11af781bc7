"""`pico scale`, `params`, `plan`: which settings are in force, and what they cost."""

import shutil
import sys
from typing import Annotated, Any

import typer

from pico.cli.common import AsJson, Group, project_root
from pico.errors import PicoError

app = typer.Typer(cls=Group)


@app.command()
def scale(
    name: Annotated[str, typer.Argument(help="A file of conf/scale/, without its ending.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Hydra overrides, such as optimizer.lr=0.001.")] = None,
) -> None:
    """Write params.yaml for a scale, as `dvc exp run -S scale=NAME` does, for plain `dvc repro`."""
    root = project_root()
    from flows.scales import compose, write_params

    params, text = compose(root, name, overrides or [])
    changed = write_params(root, text)
    verb = "now holds" if changed else "already held"
    print(f"params.yaml {verb} scale {name}: models {', '.join(params.suite.models)}")


@app.command()
def params(
    key: Annotated[str | None, typer.Argument(help="Only this part, such as optimizer or models.tiny.")] = None,
) -> None:
    """Check params.yaml, and print the settings in force."""
    root = project_root()
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


@app.command()
def plan(
    setting: Annotated[
        list[str] | None, typer.Option("-S", metavar="KEY=VALUE", help="As of dvc exp run: scale=paper; repeatable.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="h100, h200, a100-80, ..., or cpu for this machine.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, show_default="training.workers", help="How many.")] = None,
    mfu: Annotated[float | None, typer.Option(show_default="0.4, or 0.3 on a CPU", help="Share of the peak.")] = None,
    as_json: AsJson = False,
) -> None:
    """What training the suite in force costs: FLOPs, memory, hours, disk; with -S, of settings composed anew.

    The exit status is 1 where a model cannot be trained so, and what to change is said.
    """
    root = project_root()
    from pico.config import load_params
    from pico.plan.plan import FORMULAS, as_dict, find_hardware, gigabytes, plan_suite, tables

    params = load_params(root / "params.yaml")
    if setting:
        from flows.scales import compose

        scales = [one.removeprefix("scale=") for one in setting if one.startswith("scale=")]
        others = [one for one in setting if not one.startswith("scale=")]
        params, _ = compose(root, scales[-1] if scales else params.suite.scale, others)
    hardware = find_hardware(gpu, gpus, mfu, params)
    plans = plan_suite(params, hardware)
    if as_json:
        from pico.files import canonical_json

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
