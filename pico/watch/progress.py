"""The progress bar of every stage and command, and how training uses it."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

LOG_SECONDS = 30.0
"""Least time between two lines where there is no terminal."""
PUBLISH_SECONDS = 2.0
"""Least time between two calls of `publish`: each is a request to Prefect's server."""
RATE_SECONDS = 300.0
"""The rate is a mean over this time, or over all of it if that is less."""


class Bar:
    """Shows how far some work is: in a terminal by a bar that vanishes at its end, elsewhere by a line now and then.

    Both say the same: done and total with their unit, rate, time elapsed, time left, and a note.

    Args:
        description: the work, such as "analyze tiny".
        total: the amount of work; a float if it is measured and not counted. None if `update` gives it later.
        unit: of `total`, such as "layers" or "MB".
        log: receives the lines, for instance a logger's `info`. Without it nothing is shown outside a terminal.
        publish: receives the fraction done, in [0, 1], every few seconds and at the end.
        console: where the bar is drawn; stderr by default.
    """

    def __init__(
        self,
        description: str,
        total: float | None,
        unit: str,
        *,
        log: Callable[[str], None] | None = None,
        publish: Callable[[float], None] | None = None,
        console: Console | None = None,
    ) -> None:
        console = console or Console(stderr=True)
        self.description, self.unit, self.log, self.publish = description, unit, log, publish
        self.terminal = console.is_terminal
        self.progress = Progress(
            # A narrow terminal cuts the figures at their end.
            TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=len(description))),
            # Styles are spelled out, because the console of Prefect's logger knows none of rich's by name.
            BarColumn(None, style="bright_black", complete_style="cyan", finished_style="green", pulse_style="cyan"),
            _Figures(self),
            console=console,
            transient=True,
            disable=not self.terminal,
            expand=True,
            speed_estimate_period=RATE_SECONDS,
        )
        self.progress.add_task(description, total=total, note="")
        self._task = self.progress.tasks[0]
        self._logged_at = self._published_at = time.monotonic()
        self._logged = 0.0

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.progress.stop()
        if kind is None and self._task.completed != self._logged:
            self._write_line()
        if self.publish:
            self.publish(self.share)

    @property
    def share(self) -> float:
        """The fraction done, in [0, 1]."""
        return min(1.0, max(0.0, self._task.completed / self._task.total)) if self._task.total else 0.0

    def update(self, done: float | None = None, total: float | None = None, *, note: str | None = None) -> None:
        """Sets what is done, of how much, and the note; None leaves it as it is. A new total begins a new rate."""
        note = self._task.fields["note"] if note is None else note
        self.progress.update(self._task.id, completed=done, total=total, description=self.description, note=note)
        now = time.monotonic()
        if now - self._logged_at >= LOG_SECONDS:
            self._write_line()
            self._logged_at, self._logged = now, self._task.completed
        if self.publish and now - self._published_at >= PUBLISH_SECONDS:
            self.publish(self.share)
            self._published_at = now

    def advance(self, amount: float = 1) -> None:
        """Adds to what is done."""
        self.update(self._task.completed + amount)

    def fraction(self, share: float) -> None:
        """Sets what is done as a fraction of the total."""
        self.update(share * (self._task.total or 0.0))

    def pause(self, other: str) -> None:
        """Shows that something else is done for a moment, until the next update. A log does not have it."""
        self.progress.update(self._task.id, description=f"{self.description} ({other})")

    def figures(self, task: Task) -> str:
        """Returns what a bar and a line say beside the description."""
        parts = [f"{_amount(task.completed, task.total)} {self.unit}"]
        if task.speed:
            parts.append(f"{task.speed:,.{0 if task.speed >= 100 else 1}f} {self.unit}/s")
        parts.append(str(timedelta(seconds=int(task.elapsed or 0))))
        if task.time_remaining:
            parts.append(f"{timedelta(seconds=int(task.time_remaining))} left")
        return "  ".join([*parts, task.fields["note"]]).rstrip()

    def _write_line(self) -> None:
        if self.log and not self.terminal:
            self.log(f"{self.description}: {self.figures(self._task)}")


class _Figures(ProgressColumn):
    """The text of a bar, at its right."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        super().__init__(Column(no_wrap=True, overflow="ellipsis"))

    def render(self, task: Task) -> Text:
        return Text(self.bar.figures(task))


def _amount(done: float, total: float | None) -> str:
    """Formats done and total: whole if counted, with a decimal if measured."""
    if total is None:
        return f"{done:,.0f}"
    return f"{int(done):,}/{total:,}" if isinstance(total, int) else f"{done:,.1f}/{total:,.1f}"


class Display:
    """Shows the events of a training run in a bar of its steps; `warn` receives the run's warnings."""

    def __init__(self, bar: Bar, *, warn: Callable[[str], None]) -> None:
        self.bar, self.warn = bar, warn
        self._heldout = ""

    def show(self, event: dict[str, Any]) -> None:
        """Takes one event of the training loop; see pico.watch.events."""
        if "warning" in event:
            self.warn(event["warning"])
        elif "start" in event:
            self.bar.update(event["start"], event["steps"])
        elif "capturing" in event:
            self.bar.pause(f"capturing learning dynamics of step {event['capturing']}")
        elif "step" in event:
            self.bar.update(event["step"], note=self._note(event))

    def _note(self, event: dict[str, Any]) -> str:
        note = [f"loss {event['loss']:.3f}", f"lr {event['learning_rate']:.1e}"]
        note.append(f"{event['tokens_per_second']:,.0f} tokens/s")
        if "mfu" in event:
            note.append(f"MFU {event['mfu']:.0%}")
        if "heldout_loss" in event:
            self._heldout = f"held-out {event['heldout_loss']:.3f}"
        return "  ".join([*note, self._heldout]).rstrip()
