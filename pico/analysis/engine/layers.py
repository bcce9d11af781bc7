"""Which layers of a model are analysed: "all", a list of numbers, or text such as "0-3,8"."""

import re
from collections.abc import Sequence

from pico.errors import PicoError


def choose_layers(chosen: str | Sequence[int], n_layers: int) -> list[int]:
    """The layers' numbers, ascending, from 0; both ends of a range belong to it.

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
    first = _number(int(match[1]), n_layers)
    last = first if match[2] is None else _number(int(match[2]), n_layers)
    if last < first:
        raise PicoError(f"analysis.layers: the range {part!r} goes backwards")
    return range(first, last + 1)


def _number(number: int, n_layers: int) -> int:
    if number >= n_layers:
        raise PicoError(
            f"analysis.layers names layer {number} of a model with {n_layers}",
            mend=f"they are numbered 0 to {n_layers - 1}",
        )
    return number
