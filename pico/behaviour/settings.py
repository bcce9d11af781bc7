"""What is measured of a model's behaviour, and on how much: every number that a value depends on."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from pico.analysis.metrics.registry import nearest
from pico.behaviour import attention, landscape, likelihood, local_learning, memorisation  # noqa: F401 (they are listed)
from pico.behaviour.catalogue import CATALOGUE
from pico.behaviour.local_learning import Langevin
from pico.errors import PicoError

OPTIONAL = ("local_learning_coefficient",)
ERRORS = ("hessian_trace_standard_error", "local_learning_coefficient_standard_error")
"""Recorded along with what they are errors of."""

NAMES = tuple(sorted(set(CATALOGUE) - set(ERRORS)))
"""Everything that can be asked for."""

DEFAULT = tuple(name for name in NAMES if name not in OPTIONAL)


def list_behaviour() -> list[dict[str, Any]]:
    """Everything that `behaviour.metrics` may name, as rows like those of `list_metrics`."""
    return [
        {
            "name": name,
            "definition": CATALOGUE[name].definition,
            "applies_to": [CATALOGUE[name].data_type],
            "inputs": "a model and rows of tokens",
            "target": {"kl_to_checkpoint": "last", "kl_to_seed": "another run"}.get(name),
            "settings": {},
            "source": CATALOGUE[name].source,
        }
        for name in NAMES
    ]


@dataclass(frozen=True)
class BehaviourSettings:
    """The defaults take seconds for a checkpoint of the laptop scale. Raises PicoError for unknown metrics."""

    metrics: Collection[str] = DEFAULT
    """Of NAMES."""
    seed: int = 0
    """Of random tokens, probes and chains."""
    heldout_rows: int = 64
    """At most so many, spread evenly over the rows given."""
    ngram_rows: int = 4096
    """Training rows that are counted for unigrams, bigrams and frequency bins, spread evenly."""
    attention_rows: int = 8
    """Held-out rows on which heads are looked at."""
    repeated_length: int = 64
    """Length of the random row that is repeated; cut to half the context, and to the tokens there are."""
    repeated_rows: int = 16
    memorised_rows: int = 64
    """The first training rows, which every checkpoint but the earliest has seen; and as many held-out rows beside."""
    landscape_rows: int = 4
    """The first training rows, over which the loss whose curvature is measured is a mean."""
    landscape_rows_at_once: int = 1
    in_context_half_width: float = 1 / 64
    """Half the width of the in-context score's windows, in contexts; above 12 / 512 the later one leaves the row."""
    calibration_bins: int = 15
    hessian_tolerance: float = 1e-2
    """Relative, of the largest eigenvalue."""
    krylov: int = 10
    trace_probes: int = 8
    langevin: Langevin = field(default_factory=Langevin)

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in NAMES:
                raise PicoError(
                    f"{name!r} is not a behavioural metric{nearest(name, NAMES)}",
                    mend=f"the behavioural metrics are {', '.join(NAMES)}",
                )
