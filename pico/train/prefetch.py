"""Batches made ready ahead of time by a thread of their own, in order."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

AHEAD = 2
"""Batches that are ready and wait."""


@contextmanager
def prefetched(
    make: Callable[[int], Tensor], start: int, stop: int, device: torch.device
) -> Iterator[Iterator[Tensor]]:
    """Gives make(start), ..., make(stop - 1) in turn. For CUDA they lie in pinned memory, so that copies do not wait.

    What `make` raises is raised where its batch is asked for. On leaving, the thread ends.
    """
    ready: queue.Queue[Tensor | BaseException] = queue.Queue(maxsize=AHEAD)
    over = threading.Event()

    def put(item: Tensor | BaseException) -> bool:
        while not over.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for number in range(start, stop):
                batch = make(number)
                if not put(batch.pin_memory() if device.type == "cuda" else batch):
                    return
        except BaseException as error:
            put(error)

    def batches() -> Iterator[Tensor]:
        for _ in range(start, stop):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        yield batches()
    finally:
        over.set()
        thread.join()
