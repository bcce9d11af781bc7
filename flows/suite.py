"""Runs the whole DVC graph with independent stages side by side; `dvc repro` does the same one after another.

`python -m flows.suite [--jobs N] [STAGE ...]`. Each stage is `dvc repro --single-item` in a process of its own, which
DVC keeps apart with its lock. dvc.lock ends with the bytes that `dvc repro` gives.
"""

import argparse
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import task
from prefect.task_runners import ThreadPoolTaskRunner

from flows.stage import Stage, execute, leave
from pico.config import load_params
from pico.errors import PicoError

LOGS = Path("runs/suite")
STOP_SECONDS = 60
"""The time that stages may take to save and leave after Ctrl-C before they are killed."""


Plan = dict[str, set[str]]
"""The names that each stage depends on, by stage name, in the order in which `dvc repro` runs them."""


@dataclass
class Running:
    """The processes of the stages under way, so that they can be interrupted together."""

    environment: dict[str, str]
    processes: set[subprocess.Popen] = field(default_factory=set)
    """Those whose output has not ended, each the leader of a group of processes."""
    stopping: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, command: list[str]) -> subprocess.Popen:
        with self.lock:
            if self.stopping:
                raise RuntimeError("the suite is being stopped")
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self.environment,
                text=True,
                errors="replace",
                start_new_session=True,  # `stop` decides what reaches it
            )
            self.processes.add(process)
        return process

    def ended(self, process: subprocess.Popen) -> None:
        """Forgets a process whose output has ended, so that none of its group is left."""
        with self.lock:
            self.processes.discard(process)

    def stop(self) -> None:
        """Interrupts all as Ctrl-C would, waits for them to save and leave, and kills what remains."""
        with self.lock:
            self.stopping = True
        again = set(self._left())
        self._signal(again, signal.SIGINT)
        deadline = time.monotonic() + STOP_SECONDS
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.2)
            # DVC waits for its stage, but when interrupted just as it starts one, it leaves and the stage stays.
            deserted = {process for process in left & again if process.poll() is not None}
            again -= deserted
            self._signal(deserted & self._left(), signal.SIGINT)
        self._signal(self._left(), signal.SIGKILL)

    def _left(self) -> set[subprocess.Popen]:
        with self.lock:
            return set(self.processes)

    @staticmethod
    def _signal(leaders: set[subprocess.Popen], number: int) -> None:
        for leader in leaders:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(leader.pid, number)


def read_plan(targets: list[str]) -> Plan:
    """Reads the graph of dvc.yaml, expanded by its matrices: all of it, or `targets` and what they depend on."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

    try:
        with Repo() as repo:
            graph = get_active_graph(repo.index.graph)
            stages = collect_stages(repo, targets or ["dvc.yaml"])
            order = plan_repro(graph, stages)
            return {s.addressing: {d.addressing for d in graph[s]} for s in order}
    except DvcException as error:
        raise PicoError(f"DVC cannot read the graph: {error}", where="dvc.yaml", mend="see: dvc repro --dry") from error


def lock_order(path: Path = Path("dvc.lock")) -> list[str]:
    """Returns the stage names in dvc.lock, in their order there; empty where there is none."""
    from dvc.utils.serialize import load_yaml

    return list(load_yaml(path).get("stages") or {}) if path.is_file() else []


def order_lock(before: list[str], plan: Plan, path: Path = Path("dvc.lock")) -> None:
    """Orders dvc.lock as `dvc repro` leaves it: entries stay where they were, new ones follow in plan order."""
    from dvc.utils.serialize import modify_yaml

    now = lock_order(path)
    rank = {name: place for place, name in enumerate([*before, *(n for n in plan if n not in set(before))])}
    wanted = sorted(now, key=lambda name: rank.get(name, len(rank)))
    if wanted == now:
        return
    with modify_yaml(path) as data:
        stages = data["stages"]
        for name in wanted:
            stages[name] = stages.pop(name)


@task
def reproduce(name: str, running: Running, finished: "queue.Queue[str]") -> dict[str, Any]:
    """Runs one stage through DVC, its output to the task's log and to runs/suite/. Returns a row of the table."""
    from prefect import get_run_logger

    logger, log, begin = get_run_logger(), LOGS / f"{name.replace('/', '_')}.log", time.monotonic()
    outcome = "unchanged"
    try:
        process = running.start([sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", name])
        with open(log, "w", encoding="utf-8") as file:
            for line in process.stdout or ():
                file.write(line)
                file.flush()
                if line.startswith("Running stage"):
                    outcome = "ran"
                elif "is cached - skipping run" in line:
                    outcome = "from the run cache"
                if text := line.strip():
                    logger.info(text)
        running.ended(process)
        if process.wait():
            raise PicoError(
                f"stage {name} failed (status {process.returncode})", where=str(log), mend=f"dvc repro {name}"
            )
        return {"stage": name, "outcome": outcome, "seconds": round(time.monotonic() - begin, 1)}
    finally:
        finished.put(name)


def walk(stage: Stage, plan: Plan) -> None:
    """Starts every stage as soon as what it depends on is done and a place is free; publishes a table at the end.

    A failed stage holds back what depends on it; the others finish. Raises PicoError that names both kinds.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    finished: queue.Queue[str] = queue.Queue()
    # This process's own `python` comes first on the path, as if its environment were activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    running = Running({**os.environ, "PATH": path})
    futures: dict[str, Any] = {}
    rows: dict[str, dict[str, Any]] = {}
    failed: set[str] = set()
    before = lock_order()
    try:
        while True:
            for name, needs in plan.items():
                if name not in futures and needs <= rows.keys():
                    futures[name] = reproduce.with_options(task_run_name=name).submit(name, running, finished)
            if len(rows) + len(failed) == len(futures):
                break
            name = finished.get()
            state = futures[name].wait() or futures[name].state
            if state.is_completed():
                rows[name] = state.result()
            else:
                failed.add(name)
    except BaseException:
        running.stop()
        raise
    finally:
        order_lock(before, plan)
    held_back = [name for name in plan if name not in futures]
    table = [
        rows.get(name, {"stage": name, "outcome": "failed" if name in failed else "not run", "seconds": None})
        for name in plan
    ]
    stage.table("suite", table, "Outcome of every stage of the graph")
    if failed:
        raise PicoError(
            f"{len(failed)} of {len(plan)} stages failed: {', '.join(n for n in plan if n in failed)}"
            + (f"\n  not run, because they depend on it: {', '.join(held_back)}" if held_back else ""),
            where=", ".join(str(LOGS / f"{n.replace('/', '_')}.log") for n in plan if n in failed),
            mend="mend what the log says and run the same command again: finished stages are kept",
        )


def main() -> None:
    """Runs the command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m flows.suite", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="STAGE", help="only these and what they need (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="stages at a time (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error("--jobs must be at least 1")
    try:
        params, plan = load_params(), read_plan(arguments.targets)
    except PicoError as error:
        leave("suite", error)
    execute(Stage("suite", params), lambda stage: walk(stage, plan), task_runner=ThreadPoolTaskRunner(arguments.jobs))


if __name__ == "__main__":
    main()
