"""Events of a run, from the process that trains to whoever watches: appended to a file, and read as they come."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


class EventWriter:
    """Appends events to a file, one JSON object a line; for watching only, nothing is ever made from it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: dict[str, Any]) -> None:
        with suppress(OSError), open(self.path, "a") as file:  # a full disk is met, and named, where it matters
            file.write(json.dumps({**event, "time": round(time.time(), 3)}) + "\n")


class EventReader:
    """Reads what has been appended since the last call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = path.stat().st_size if path.exists() else 0

    def read(self) -> list[dict[str, Any]]:
        """The new whole lines; what a process that was killed has torn is passed over."""
        if not self.path.exists():
            return []
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        events = []
        for line in whole.splitlines():
            with suppress(ValueError):
                events.append(json.loads(line))
        return events
