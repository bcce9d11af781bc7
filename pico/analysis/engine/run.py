"""Analyses a run: one pure task a layer of a checkpoint, spread over the workers there are; one file a checkpoint.

Files that an interrupted analysis left are kept. The working folder is named by all that the numbers depend on: the
checkpoints' manifests, the settings and this package's source, so that nothing stale is ever taken up. Spectra, Gram
factors and measurements lie beside it in sidecars, which outlive a change of settings: pico.analysis.engine.sidecar.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import call
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pico.analysis.engine.choices import Place, choose_layers, other_runs, targets_of
from pico.analysis.engine.components import MODEL, get_component
from pico.analysis.engine.layer import Task, measure_layer
from pico.analysis.engine.plugins import load_metric_files
from pico.analysis.engine.sidecar import checkpoint_folder, drop_others
from pico.analysis.engine.table import Row, file_name, write_table
from pico.analysis.engine.training import measure_training, of_training
from pico.analysis.metrics.registry import get_metric, nearest
from pico.checkpoint import MANIFEST, Checkpoint, checkpoints
from pico.errors import PicoError
from pico.files import fingerprint, sha256_file, working_folder
from pico.identity import device_name, identity
from pico.plugins import UserFile, file_hashes
from pico.spread import spread

Part = Callable[[], list[Row]]
"""One task: gives some rows of one checkpoint."""
Report = Callable[[int, int], None]
"""Called with (tasks done, tasks in all) after every task."""

GPU_SHARE = 0.25
"""The share of a GPU for one task: four take turns, so that it works while others read files."""
CURVE = "training.csv"


def find_checkpoints(run: Path) -> list[Checkpoint]:
    """Returns the finished checkpoints of a trained model, by step. Raises PicoError where there are none."""
    found = checkpoints(run)
    if not found:
        raise PicoError(f"{run} holds no finished checkpoints", mend="train the model first: dvc repro")
    return found


def analysis_folder(
    run: Path,
    name: str,
    metrics: Sequence[str],
    components: Sequence[str],
    root: Path = Path("runs"),
    *,
    layers: str | Sequence[int] = "all",
    compare: Sequence[str | int] = ("last",),
    layer_pairs: bool = False,
    others: Mapping[str, Path] | None = None,
    files: Sequence[UserFile] = (),
    data_types: Mapping[str, Sequence[str]] = MappingProxyType({}),
    device: str = "cpu",
    more: Any = None,
) -> Path:
    """Returns the resumable working folder below `root` for this analysis of this run; settings as for `analyze_run`.

    more: plain values that say what `more` of `analyze_run` depends on.
    """
    about = {
        "run": name,
        "metrics": list(metrics),
        "components": list(components),
        "layers": layers if isinstance(layers, str) else list(layers),
        "compare": list(compare),
        "layer_pairs": layer_pairs,
        "checkpoints": _manifests(run),
        "curve": sha256_file(run / CURVE) if (run / CURVE).exists() else None,
        "others": {other: _manifests(folder) for other, folder in (others or {}).items()},
        "files": file_hashes(files),
        "data_types": {metric: list(chosen) for metric, chosen in data_types.items()},
        "device": device_name(device),
        "more": more,
        **identity(__name__),
    }
    return working_folder("analyze", about, root)


def _manifests(run: Path) -> dict[str, str]:
    return {one.folder.name: sha256_file(one.folder / MANIFEST) for one in find_checkpoints(run)}


def analyze_run(
    run: Path,
    name: str,
    metrics: Sequence[str],
    components: Sequence[str],
    folder: Path,
    *,
    layers: str | Sequence[int] = "all",
    compare: Sequence[str | int] = ("last",),
    layer_pairs: bool = False,
    others: Mapping[str, Path] | None = None,
    files: Sequence[UserFile] = (),
    data_types: Mapping[str, Sequence[str]] = MappingProxyType({}),
    device: str = "cpu",
    more: Callable[[Checkpoint], Part | None] = lambda checkpoint: None,
    sidecars: Path | None = None,
    report: Report | None = None,
    workers: int | None = None,
) -> list[Path]:
    """Measures every layer of every checkpoint of `run` (a trained model) into `folder`; gives the files, by step.

    name: what the table calls the run. metrics, components: registered names. layers: see `choose_layers`; components
    of the whole model are measured besides. compare: what metrics of activations compare with, any of "last",
    "previous", "first", "every" (each pair of checkpoints), a step, and "run:NAME" (the same step of another run, NAME
    being a key of `others`). layer_pairs: also with every other chosen layer of the same checkpoint. Metrics of weights
    compare with the checkpoint before, the first one or all before, as each says. `target_step`, `target_run` and
    `target_layer` record what with.

    files: the user's own metrics and components. data_types: metric -> those of activations, weights and gradients that
    it is measured of, where not all that it is defined for. device: "cpu" or "cuda". more: gives, for a checkpoint, a
    picklable function that gives further rows of it, or None; one more task.

    sidecars: a folder that keeps spectra, Gram factors and measurements from one analysis to the next. Files of
    `folder` that are there are kept, others are made on `workers` workers (see pico.spread), with the same bytes for
    any number of them, and whatever the sidecars hold. Raises PicoError for unknown names and settings, and for missing
    or unreadable checkpoints.
    """
    load_metric_files(files)
    for metric in metrics:
        get_metric(metric)
    _check_data_types(data_types, metrics)
    if sidecars is not None and files:  # what was measured by other versions of them is not looked at
        sidecars = sidecars / f"with_{fingerprint(file_hashes(files))}"
    found = find_checkpoints(run)

    def place(one: Checkpoint, run: str) -> Place:
        return Place(one.folder, checkpoint_folder(sidecars, run, one, device) if sidecars else None)

    places = [place(one, name) for one in found]
    n_layers = min(int(one.config["n_layers"]) for one in found)
    of_model = [get_component(component).of_model for component in components]
    chosen = choose_layers(layers, n_layers) if not all(of_model) else []
    measured = [*([MODEL] if any(of_model) else []), *chosen]
    of_run = of_training(tuple(metrics))
    other_places = {
        other: {one.step: place(one, Path(other).name) for one in find_checkpoints(_known(other, others or {}))}
        for other in other_runs(compare)
    }

    def parts_of(index: int) -> list[Part]:
        parts: list[Part] = [
            partial(
                measure_layer,
                Task(
                    run=name,
                    place=places[index],
                    layer=layer,
                    metrics=tuple(metrics),
                    components=tuple(components),
                    earlier=tuple(places[:index]),
                    targets=targets_of(
                        index,
                        layer,
                        places,
                        compare,
                        other_places,
                        chosen if layer_pairs and layer != MODEL else (),
                    ),
                    files=tuple(files),
                    device=device,
                    data_types=tuple((metric, tuple(chosen)) for metric, chosen in data_types.items()),
                ),
            )
            for layer in measured
        ]
        if of_run:
            folders = tuple(place.folder for place in places[: index + 1])
            parts.append(partial(measure_training, name, folders, of_run, run / CURVE))
        further = more(found[index])
        return [*parts, further] if further else parts

    for stale in folder.glob(".*.partial"):  # of a write that was killed
        stale.unlink()
    written = [folder / file_name(one.step) for one in found]
    parts = {index: parts_of(index) for index, path in enumerate(written) if not path.exists()}
    tasks = [(index, number) for index, of_one in parts.items() for number in range(len(of_one))]
    calls = [(parts[index][number],) for index, number in tasks]
    waiting: dict[int, dict[int, list[Row]]] = {}
    for done, (task, rows) in enumerate(
        spread(call, calls, workers=workers, gpus=GPU_SHARE * (device != "cpu")), start=1
    ):
        index, number = tasks[task]
        ready = waiting.setdefault(index, {})
        ready[number] = rows
        if len(ready) == len(parts[index]):
            write_table(written[index], [row for number in sorted(ready) for row in ready[number]])
            del waiting[index]
        if report:
            report(done, len(tasks))
    if sidecars is not None:
        drop_others(sidecars, name, {one.sidecars for one in places if one.sidecars})
    return written


def _check_data_types(data_types: Mapping[str, Sequence[str]], metrics: Sequence[str]) -> None:
    """Raises PicoError where a metric is not measured at all, or has no such type of data."""
    for name, chosen in data_types.items():
        if name not in metrics:
            raise PicoError(
                f"data types are chosen for {name!r}, which is not measured{nearest(name, metrics)}",
                where="params.yaml: analysis.data_types",
                mend="add it to analysis.metrics, or leave it out here",
            )
        if wrong := set(chosen) - set(get_metric(name).data_types):
            raise PicoError(
                f"metric {name!r} is not defined for {', '.join(sorted(wrong))}",
                where="params.yaml: analysis.data_types",
                mend=f"choose from: {', '.join(get_metric(name).data_types)}",
            )


def _known(name: str, others: Mapping[str, Path]) -> Path:
    """Returns another run. Raises PicoError where no such run is known."""
    if name not in others:
        raise PicoError(
            f"analysis.compare names the run {name!r}, which is not known",
            mend=f"known are: {', '.join(sorted(others)) or 'none'}",
        )
    return others[name]
