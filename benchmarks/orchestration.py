"""The share of the last `make repro` that was orchestration: `pico up && python -m benchmarks.orchestration [--json]`.

Reads the flow runs that Prefect recorded in this checkout and the events of the training processes. For each stage:

- `between`: from the end of the flow before to the start of this stage's. DVC's hashing and bookkeeping, and the start
  of a process, with what it imports.
- `flow`: the flow's own time.
- `ray`: of that, what Ray took. For training, all but the time between the loop's first and last event. For stages
  that spread tasks, the time that connecting and starting two workers takes, measured here with tasks that only import
  torch.
- `lab`: starting and stopping the lab, measured here.
- `Prefect within flows`: taken to be the time of a flow with three empty tasks, measured here, for each stage.

- `imports`: what of `ray` any process would need that trains or measures: to start Python and import torch, measured
  here. Each stage with workers is credited with it once.

Orchestration is all of that but `flow`, less `imports`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import flows  # noqa: F401  (sets the environment before Prefect is imported)
from flows.lab.prefect_server import prefect_session
from flows.lab.ray_session import ray_session
from flows.lab.services import down, up
from pico.spread import spread

SPREADING = ("analyze", "benchmark")


def recorded_flow_runs() -> list[dict[str, Any]]:
    """Returns the flow runs of the latest walk through the graph in order of time: name, start and end in seconds."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=200)
    found: list[dict[str, Any]] = []
    for run in runs:
        if run.name and run.start_time and run.end_time and run.state and run.state.is_completed():
            if not Path(f"flows/{run.name.split('-')[0]}.py").is_file():  # not a stage
                continue
            found.append({"name": run.name, "start": run.start_time.timestamp(), "end": run.end_time.timestamp()})
            if run.name == "fetch":  # the graph's first stage
                break
    return found[::-1]


def training_seconds(root: Path) -> list[float]:
    """Returns the seconds between the first and the last event of the training loop, for each run in order of time."""
    found = []
    for file in sorted(root.glob("*/progress.jsonl"), key=lambda path: path.stat().st_mtime):
        events = [json.loads(line) for line in file.read_text().splitlines()]
        starts = [number for number, event in enumerate(events) if "start" in event]
        if starts:
            found.append(events[-1]["time"] - events[starts[-1]]["time"])
    return found


def import_torch(_: int) -> int:
    """Does what a worker of a spreading stage has to do before any science."""
    import torch

    return torch.get_num_threads()


def ray_start_seconds() -> float:
    """Measures connecting to Ray and starting two workers; Ray's own import is the fork server's."""
    import ray  # noqa: F401

    start = time.monotonic()
    with ray_session(Path.cwd()):
        list(spread(import_torch, [(0,), (1,)]))
    return time.monotonic() - start


def import_seconds() -> float:
    """Measures a new process that imports torch."""
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        seconds.append(time.monotonic() - start)
    return statistics.median(seconds)


def empty_flow_seconds() -> float:
    """Measures a flow of three empty tasks: Prefect's part of a stage."""
    from prefect import flow, task

    @task
    def nothing() -> None: ...

    @flow(name="empty")
    def empty() -> None:
        for _ in range(3):
            nothing()

    seconds = []
    with prefect_session():
        for _ in range(6):
            start = time.monotonic()
            empty()
            seconds.append(time.monotonic() - start)
    return statistics.median(seconds[1:])


def lab_seconds() -> float:
    """Measures stopping the lab and starting it again."""
    start = time.monotonic()
    down(Path.cwd())
    up(Path.cwd())
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    runs = recorded_flow_runs()
    if not runs:
        raise SystemExit("Prefect has no completed flow runs of this checkout: run make repro, then pico up")
    trained = training_seconds(Path("runs/pretrain"))
    importing, spreading, empty, lab = import_seconds(), ray_start_seconds(), empty_flow_seconds(), lab_seconds()
    rows: list[dict[str, Any]] = []
    before = runs[0]["start"]
    for run in runs:
        seconds = run["end"] - run["start"]
        ray = 0.0
        if run["name"].startswith("pretrain") and trained:
            ray = seconds - trained.pop(0)
        elif run["name"].startswith(SPREADING):
            ray = spreading
        rows.append({"stage": run["name"], "between": max(run["start"] - before, 0.0), "flow": seconds, "ray": ray})
        before = run["end"]
    total = {key: sum(row[key] for row in rows) for key in ("between", "flow", "ray")}
    wall = runs[-1]["end"] - runs[0]["start"] + lab
    prefect = empty * len(rows)
    imports = importing * sum(row["ray"] > 0 for row in rows)
    share = (total["between"] + total["ray"] - imports + prefect + lab) / wall
    parts = {"lab": lab, "prefect_in_flows": prefect, "imports": imports}
    result = {"wall": wall, "stages": rows, "total": total, **parts, "share": share}
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    for row in [*rows, {"stage": "all", **total}]:
        print("{stage:18} between {between:6.1f} s   flow {flow:6.1f} s (Ray {ray:5.1f})".format(**row))
    print(
        f"wall {wall:.0f} s; lab {lab:.0f} s; Prefect within flows about {prefect:.0f} s; imports {imports:.0f} s\n"
        f"orchestration {100 * share:.0f} % of the wall; with the imports {100 * (share + imports / wall):.0f} %"
    )


if __name__ == "__main__":
    main()
