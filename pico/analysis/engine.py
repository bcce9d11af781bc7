"""Analyses a run: one pure task a layer of a checkpoint, spread over the workers there are; one file a checkpoint.

Files that an interrupted analysis left are kept. The working folder is named by all that the numbers depend on: the
checkpoints' manifests, the settings and this package's source, so that nothing stale is ever taken up.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from pico.analysis.components import get_component
from pico.analysis.layer import Row, Task, measure_layer
from pico.analysis.registry import TARGETS, get_metric
from pico.analysis.table import file_name, write_table
from pico.checkpoint import MANIFEST, Checkpoint, checkpoints
from pico.errors import PicoError
from pico.files import sha256_file, working_folder
from pico.spread import spread

Report = Callable[[int, int], None]
"""Told (tasks done, tasks in all) after every task."""


def find_checkpoints(run: Path) -> list[Checkpoint]:
    """The finished checkpoints of a trained model, by step. Raises PicoError where there are none."""
    found = checkpoints(run)
    if not found:
        raise PicoError(f"{run} holds no finished checkpoints", mend="train the model first: dvc repro")
    return found


def analysis_folder(
    run: Path, name: str, metrics: Sequence[str], components: Sequence[str], root: Path = Path("runs")
) -> Path:
    """The resumable working folder below `root` for this analysis of this run."""
    identity = {
        "run": name,
        "metrics": list(metrics),
        "components": list(components),
        "checkpoints": {one.folder.name: sha256_file(one.folder / MANIFEST) for one in find_checkpoints(run)},
        "code": {path.name: sha256_file(path) for path in sorted(Path(__file__).parent.glob("*.py"))},
    }
    return working_folder("analyze", identity, root)


def analyze_run(
    run: Path,
    name: str,
    metrics: Sequence[str],
    components: Sequence[str],
    folder: Path,
    *,
    report: Report | None = None,
    workers: int | None = None,
    layers: Sequence[int] | None = None,
) -> list[Path]:
    """Measures every layer of every checkpoint of `run` (a trained model) into `folder`; gives the files, by step.

    name: what the table calls the run. layers: which, ascending; all by default.
    metrics, components: registered names. Each checkpoint is compared with the
    last, the one before it or the first, as each metric says; `target_step` records it. Files of `folder` that are
    there are kept, others are made on `workers` workers (see pico.spread), with the same bytes for any number of them.
    Raises PicoError for unknown names, and for missing or unreadable checkpoints.
    """
    for metric in metrics:
        get_metric(metric)
    for component in components:
        get_component(component)
    found = find_checkpoints(run)
    for stale in folder.glob(".*.partial"):  # of a write that was killed
        stale.unlink()
    files = [folder / file_name(one.step) for one in found]
    tasks = [
        task
        for index, path in enumerate(files)
        if not path.exists()
        for task in _tasks(found, index, name, metrics, components, layers)
    ]
    waiting: dict[Path, dict[int, list[Row]]] = {}
    for done, (index, rows) in enumerate(spread(measure_layer, [(task,) for task in tasks], workers=workers), start=1):
        task = tasks[index]
        measured = waiting.setdefault(task.folder, {})
        measured[task.layer] = rows
        if len(measured) == len(_chosen(Checkpoint(task.folder), layers)):
            path = folder / file_name(Checkpoint(task.folder).step)
            write_table(path, [row for _, part in sorted(measured.items()) for row in part])
            del waiting[task.folder]
        if report:
            report(done, len(tasks))
    return files


def _tasks(
    found: list[Checkpoint],
    index: int,
    name: str,
    metrics: Sequence[str],
    components: Sequence[str],
    layers: Sequence[int] | None,
) -> list[Task]:
    """The tasks of one checkpoint, one a layer."""
    one = found[index]
    targets = {"last": found[-1].folder, "first": found[0].folder}
    if index > 0:
        targets["previous"] = found[index - 1].folder
    assert set(targets) <= set(TARGETS)
    return [Task(name, one.folder, targets, layer, tuple(metrics), tuple(components)) for layer in _chosen(one, layers)]


def _chosen(checkpoint: Checkpoint, layers: Sequence[int] | None) -> Sequence[int]:
    return range(int(checkpoint.config["n_layers"])) if layers is None else layers
