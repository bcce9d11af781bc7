"""Which checkpoints, runs and layers activations are compared with: analysis.compare and analysis.layer_pairs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pico.analysis.engine.layer import Place, Target
from pico.checkpoint import Checkpoint
from pico.errors import PicoError

WORDS = ("last", "previous", "first", "every")
RUN = "run:"


def other_runs(compare: Sequence[str | int]) -> list[str]:
    """The names, or paths, of the other runs that `compare` mentions."""
    return [entry.removeprefix(RUN) for entry in compare if isinstance(entry, str) and entry.startswith(RUN)]


def targets_of(
    index: int,
    layer: int,
    places: Sequence[Place],
    compare: Sequence[str | int],
    others: Mapping[str, Mapping[int, Place]],
    pair_layers: Sequence[int] = (),
) -> tuple[Target, ...]:
    """What layer `layer` of checkpoint `index` is compared with, each once, in the order of the settings.

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
    """The checkpoints of the same run that an entry means."""
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
