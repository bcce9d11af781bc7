"""What a training run shows on the terminal."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 30.0
"""Where the output is no terminal, a line at most this often."""


class Display:
    """Shows events on stderr: a bar that vanishes at the end in a terminal, now and then a line elsewhere.

    `update`, if given, receives the fraction done (Prefect's progress artifact); `warn` receives warnings.
    """

    def __init__(
        self,
        model: str,
        *,
        update: Callable[[float], None] | None = None,
        warn: Callable[[str], None] | None = None,
        console: Console | None = None,
    ) -> None:
        self.model, self.update, self.warn = model, update, warn
        self.console = console or Console(stderr=True)
        self.steps = 0
        self.tokens_per_step = 0
        self.started = self.printed = time.monotonic()
        self.start = 0
        self.progress = Progress(
            TextColumn("pretrain {task.fields[model]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
            expand=True,
        )
        self.task = self.progress.add_task("", total=None, model=model, note="starting")

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def show(self, event: dict[str, Any]) -> None:
        """Takes one event of the training loop."""
        if "warning" in event:
            if self.warn:
                self.warn(event["warning"])
            else:
                self.console.print(f"pretrain {self.model}: {event['warning']}")
        elif "start" in event:
            self.start, self.steps, self.tokens_per_step = event["start"], event["steps"], event["tokens_per_step"]
            self.started = time.monotonic()
            self.progress.update(self.task, total=self.steps, completed=self.start, note="")
        elif "capturing" in event:
            self.progress.update(self.task, note=f"capturing learning dynamics of step {event['capturing']}")
        elif "step" in event:
            self._advance(event)

    def _advance(self, event: dict[str, Any]) -> None:
        speed = f"{event['tokens_per_second']:,.0f} tokens/s  MFU {event['mfu']:.0%}"
        note = f"loss {event['loss']:.3f}  lr {event['learning_rate']:.1e}  {speed}"
        self.progress.update(self.task, completed=event["step"], note=note)
        if self.update:
            self.update(event["step"] / self.steps)
        now = time.monotonic()
        last = event["step"] == self.steps
        if not self.console.is_terminal and (now - self.printed >= PLAIN_SECONDS or last):
            done = max(1, event["step"] - self.start)
            left = (now - self.started) / done * (self.steps - event["step"])
            heldout = f"  held-out {event['heldout_loss']:.3f}" if "heldout_loss" in event else ""
            self.console.print(
                f"pretrain {self.model}: step {event['step']}/{self.steps}  {note}{heldout}  {left:.0f} s left",
                highlight=False,
                soft_wrap=True,
            )
            self.printed = now
