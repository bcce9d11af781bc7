"""`pico analyze`: from any checkpoints to the table that `dvc repro` makes of a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pico.analysis.engine.components import get_component
from pico.analysis.engine.plugins import load_metric_files
from pico.analysis.engine.run import analysis_folder, analyze_run
from pico.analysis.engine.table import read_table
from pico.analysis.metrics.registry import get_metric
from pico.capture.places import Place
from pico.capture.run import Settings, captured_run, device
from pico.errors import PicoError
from pico.files import full_disk_named, write_atomic, write_json
from pico.plugins import UserFile, file_hashes

DEFAULT_METRICS = (
    "debiased_cka", "per", "effective_rank", "stable_rank", "condition_number", "frobenius_norm", "spectral_norm",
    "gini", "hoyer", "relative_change",
)  # fmt: skip
ABOUT = "analysis.json"
"""Says what the table is of; it marks a folder as one that may be replaced."""


@dataclass(frozen=True)
class Analysed:
    """What an analysis left."""

    rows: int
    """Of the table."""
    run: Path
    """The checkpoints that were measured, in pico's layout: the run itself, or what was captured of another model."""


Report = Callable[[str, int, int], None]
"""Told (`capture` or `measure`, done, in all)."""


def analyze_place(
    place: Place,
    settings: Settings,
    out: Path,
    *,
    name: str,
    metrics: Sequence[str] = DEFAULT_METRICS,
    components: Sequence[str] = ("simple", "ov_circuit"),
    files: Sequence[UserFile] = (),
    root: Path = Path("runs"),
    report: Report | None = None,
) -> Analysed:
    """Captures what is needed, measures it, and writes `out/step_*.parquet` (see pico.analysis.engine.table).

    Working state is below `root`: an interrupted analysis goes on there, and other metrics of the same checkpoints find
    their states captured. Raises PicoError for unknown names, for what cannot be read, and where `out` holds anything
    but an earlier analysis.
    """
    _refuse_others(out)
    load_metric_files(files)
    for metric in metrics:
        get_metric(metric)
    for component in components:
        get_component(component)
    run, layers = captured_run(place, settings, root, lambda *told: report("capture", *told) if report else None)
    work = analysis_folder(run, name, metrics, components, root, layers=layers, files=files, device=device())
    written = analyze_run(
        run,
        name,
        metrics,
        components,
        work,
        layers=layers,
        files=files,
        device=device(),
        report=lambda *told: report("measure", *told) if report else None,
    )
    about = {
        "name": name,
        "kind": place.kind,
        "steps": list(place.folders),
        "layers": layers,
        "metrics": list(metrics),
        "components": list(components),
        "files": file_hashes(files),
    }
    with full_disk_named(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / ABOUT, about)
        for stale in sorted({path.name for path in out.glob("step_*.parquet")} - {path.name for path in written}):
            (out / stale).unlink()
        for path in written:
            write_atomic(out / path.name, path.read_bytes())
    return Analysed(int(read_table(out).num_rows), run)


def _refuse_others(out: Path) -> None:
    if out.exists() and not (out / ABOUT).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise PicoError(f"{out} exists, and is not an earlier analysis", mend="name another folder with --out")
