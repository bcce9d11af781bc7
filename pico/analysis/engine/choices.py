"""The choices of an analysis: its layers, and the checkpoints, runs and layers that activations are compared with."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pico.checkpoint import Checkpoint
from pico.errors import PicoError

WORDS = ("last", "previous", "first", "every")
RUN = "run:"
SPLITS = ("train", "val")
"""The batches on which states are captured."""


@dataclass(frozen=True)
class Place:
    """A checkpoint, and where what was computed of it is kept."""

    folder: Path
    sidecars: Path | None = None
    """None: nothing is kept."""


@dataclass(frozen=True)
class Target:
    """A checkpoint that activations are compared with."""

    place: Place
    run: str | None = None
    """The other run's name; None for the same run."""
    layer: int | None = None
    """The other layer; None for the same layer."""


def other_runs(compare: Sequence[str | int]) -> list[str]:
    """Returns the names, or paths, of the other runs that `compare` mentions."""
    return [entry.removeprefix(RUN) for entry in compare if isinstance(entry, str) and entry.startswith(RUN)]


def targets_of(
    index: int,
    layer: int,
    places: Sequence[Place],
    compare: Sequence[str | int],
    others: Mapping[str, Mapping[int, Place]],
    pair_layers: Sequence[int] = (),
) -> tuple[Target, ...]:
    """Returns the targets of layer `layer` of checkpoint `index`, each once, in the order of the settings.

    places: the run's checkpoints, by step. others: run name -> step -> checkpoint; it is the same step of the other run
    that is compared with, where there is one. pair_layers: compared with as well, within the checkpoint. Raises
    PicoError for entries of `compare` that are not understood, and steps that the run does not have.
    """
    found: dict[Target, None] = {}
    for entry in compare:
        if isinstance(entry, str) and entry.startswith(RUN):
            name = entry.removeprefix(RUN)
            place = others[name].get(_step(places[index]))
            if place is not None:
                found[Target(place, run=Path(name).name)] = None
        else:
            for chosen in _own(entry, index, places):
                found[Target(chosen)] = None
    for other in pair_layers:
        if other != layer:
            found[Target(places[index], layer=other)] = None
    return tuple(found)


def _own(entry: str | int, index: int, places: Sequence[Place]) -> Sequence[Place]:
    """Returns the checkpoints of the same run that an entry means."""
    if entry == "last":
        return places[-1:]
    if entry == "first":
        return places[:1]
    if entry == "previous":
        return places[max(index - 1, 0) : index]
    if entry == "every":
        return places
    steps = [_step(place) for place in places]
    if isinstance(entry, int) and entry in steps:
        return [places[steps.index(entry)]]
    if isinstance(entry, int):
        raise PicoError(
            f"analysis.compare names step {entry}, of which there is no checkpoint",
            mend=f"there are steps {', '.join(map(str, steps))}",
        )
    raise PicoError(
        f"analysis.compare: {entry!r} is not understood", mend=f"give a step, run:NAME, or one of {', '.join(WORDS)}"
    )


def _step(place: Place) -> int:
    return Checkpoint(place.folder).step


def choose_layers(chosen: str | Sequence[int], n_layers: int) -> list[int]:
    """Returns the layers' numbers, ascending, from 0; both ends of a range belong to it.

    Raises PicoError for text that is not understood, and for layers that a model of `n_layers` does not have.
    """
    if chosen == "all":
        return list(range(n_layers))
    numbers: set[int] = set()
    for part in chosen.split(",") if isinstance(chosen, str) else chosen:
        numbers.update(_part(part, n_layers))
    if not numbers:
        raise PicoError("analysis.layers chooses no layer", mend='give "all", a list such as [0, 5], or text: "0-3,8"')
    return sorted(numbers)


def _part(part: str | int, n_layers: int) -> range:
    match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", str(part))
    if not match:
        raise PicoError(
            f"analysis.layers: {part!r} is not understood", mend='give "all", a list such as [0, 5], or text: "0-3,8"'
        )
    first, last = int(match[1]), int(match[2] or match[1])
    for number in (first, last):
        if number >= n_layers:
            raise PicoError(
                f"analysis.layers names layer {number} of a model with {n_layers}",
                mend=f"they are numbered 0 to {n_layers - 1}",
            )
    if last < first:
        raise PicoError(f"analysis.layers: the range {part!r} goes backwards")
    return range(first, last + 1)
