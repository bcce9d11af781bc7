"""Spreads pure functions over processes: Ray tasks where Ray is running, this process where it is not. Same results."""

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from threadpoolctl import threadpool_limits


def spread(
    function: Callable[..., Any],
    calls: Sequence[tuple],
    *,
    threads: int = 1,
    workers: int | None = None,
    gpus: float = 0.0,
) -> Iterator[tuple[int, Any]]:
    """Calls `function(*arguments)` for each of `calls`; yields (index, result) in order of completion.

    The function must be pure and importable. Every call runs with exactly `threads` threads in torch and BLAS, because
    the order of a parallel sum depends on their number, and results must not depend on where they were computed.
    At most `workers` calls (default: as many as Ray has CPUs) are in flight. `gpus`: the share of a GPU that a call
    holds; without one it sees none. An exception is raised at once, with the remaining calls cancelled.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        for index, arguments in enumerate(calls):
            yield index, with_threads(function, arguments, threads)
        return
    task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=2)(with_threads)
    limit = workers or max(1, int(ray.cluster_resources().get("CPU", 1) // threads))
    waiting = iter(enumerate(calls))
    running: dict[Any, int] = {}
    try:
        while True:
            while len(running) < limit and (following := next(waiting, None)) is not None:
                index, arguments = following
                running[task.remote(function, arguments, threads)] = index
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1)
            index = running.pop(done[0])
            try:
                result = ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from error
            yield index, result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def with_threads(function: Callable[..., Any], arguments: Iterable[Any], threads: int) -> Any:
    """Calls `function(*arguments)` with torch and BLAS limited to `threads` threads, and restores the former limits."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    if torch:
        torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            return function(*arguments)
    finally:
        if torch and before:
            torch.set_num_threads(before)


def release(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls `function(*arguments)`, then gives memory that is free, but still held by allocators, back to the system.

    For tasks of which each holds much for a moment: their peaks would otherwise stay with every process that ran one.
    """
    try:
        return function(*arguments)
    finally:
        release_memory()


def release_memory() -> None:
    """Gives free memory of Arrow's pool and of the C library back, where they can."""
    if arrow := sys.modules.get("pyarrow"):
        arrow.default_memory_pool().release_unused()
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):  # glibc has it, musl not
        library.malloc_trim(0)
