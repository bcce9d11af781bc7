"""Events of a run, from the process that trains to those who watch it: appended to a file, and read as they come."""

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pico.config import Training
from pico.spread import with_threads

if TYPE_CHECKING:
    import torch

    from pico.model import DecoderConfig


class EventWriter:
    """Appends events to a file, one JSON object a line; for watching only, nothing is ever made from it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: dict[str, Any]) -> None:
        with suppress(OSError), open(self.path, "a") as file:  # a full disk is met, and named, where it matters
            file.write(json.dumps({**event, "time": round(time.time(), 3)}) + "\n")


class EventReader:
    """Reads the events that were appended since the last call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = path.stat().st_size if path.exists() else 0

    def read(self) -> list[dict[str, Any]]:
        """Returns the new whole lines; one that a killed process has torn is passed over."""
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


def worker_event(rank: int, device: "torch.device", training: Training) -> dict[str, Any]:
    """Returns the event with which a worker begins: where it runs and, from the first, its device's peak, FLOP/s."""
    event: dict[str, Any] = {"worker": rank, "host": socket.gethostname(), "process": os.getpid()}
    if rank == 0:
        from pico.watch.hardware import find_peak

        peak = with_threads(find_peak, (device, training.precision), training.threads_per_worker)
        event["peak_flops"] = peak.flops
    return event


class Utilization:
    """Adds `mfu` to the events of updates: the share of the workers' peak that goes into the model's products."""

    def __init__(self, decoder: "DecoderConfig", training: Training) -> None:
        self.decoder, self.training = decoder, training
        self.peak = self.flops_per_token = 0.0

    def __call__(self, event: dict[str, Any]) -> dict[str, Any]:
        """Returns the event, with `mfu` where it has a rate; see pico.flops."""
        from pico.flops import training_flops_per_token

        self.peak = event.get("peak_flops", self.peak)
        if "start" in event:
            seq_len = event["tokens_per_step"] // self.training.batch_size
            self.flops_per_token = training_flops_per_token(self.decoder, seq_len)
        if "tokens_per_second" not in event or not self.peak:
            return event
        peak = self.peak * self.training.workers
        return {**event, "mfu": event["tokens_per_second"] * self.flops_per_token / peak}
