"""One thing at a time, done beside the caller: how checkpoints are written while training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """A thread that does what it is given, in order. What goes wrong is raised by a later call, once."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def do(self, work: Callable[[], None]) -> None:
        """Begins `work` when what was given before is done."""
        self.wait()
        self._pending = self._executor.submit(work)

    def check(self) -> None:
        """Raises what went wrong, if anything has by now."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Returns when all is done. Raises what went wrong."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
