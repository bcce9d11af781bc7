"""All settings, typed and strict: params.yaml in, one frozen `Params` out. Read once, at the edge.

Each section is a class of this package. An unknown or mistyped key is an error that names it and the nearest right one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pico.config.analysis import Analysis, Behaviour, Benchmarks, Evaluation, Export, Report
from pico.config.analysis import BenchmarkTask as BenchmarkTask
from pico.config.base import FROM_FILE, Section, problems
from pico.config.base import section_of as section_of
from pico.config.data import Cleaning, Corpus, Gates, Packing, Tokenizer
from pico.config.data import ExpectationSuite as ExpectationSuite
from pico.config.data import HubDataset as HubDataset
from pico.config.data import PretrainedTokenizer as PretrainedTokenizer
from pico.config.data import Source as Source
from pico.config.data import Wheel as Wheel
from pico.config.model import WIDTHS, DecoderConfig, Misfit, Model, Width
from pico.config.training import Checkpoints, LearningDynamics, Live, Schedule, Suite, Training
from pico.errors import PicoError
from pico.optimizers import Optimizer

MOST_CHECKPOINTS = 100_000
"""The most checkpoints of a run: each is a folder that analysis, benchmarks and the report look at."""


class Params(Section):
    """All of params.yaml."""

    suite: Suite
    seed: int
    """Seed of the initial weights, and of the order of the epochs after the first."""
    corpus: Corpus
    tokenizer: Tokenizer
    cleaning: Cleaning
    packing: Packing
    gates: Gates
    model: Model
    models: dict[str, Width]
    training: Training
    optimizer: Optimizer
    schedule: Schedule
    checkpoints: Checkpoints
    learning_dynamics: LearningDynamics
    live: Live
    analysis: Analysis
    behaviour: Behaviour
    benchmarks: Benchmarks
    evaluation: Evaluation
    export: Export
    report: Report

    def decoder(self, model: str) -> DecoderConfig:
        """Returns the shape of one model of the suite. Raises Misfit naming the keys that do not fit together."""
        values = dict(self.model) | dict(self.models[model])  # type: ignore[call-overload]
        try:
            return DecoderConfig(**values)
        except Misfit as misfit:
            keys = {name: f"models.{model}.{name}" if name in WIDTHS else f"model.{name}" for name in values}
            raise Misfit(misfit.rule, misfit.values, keys) from None

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if found := list(self._misfits()):
            raise PydanticCustomError("misfits", "settings do not fit together", {"problems": found})
        return self

    def _misfits(self) -> Iterator[str]:
        """Yields a line for each rule between settings that is broken."""
        names, entries = self.suite.models, list(self.models)
        tokenizer, model = self.tokenizer, self.model
        if sorted(names) != sorted(entries):
            yield f"suite.models lists {names}, but models has entries for {entries}: they must be the same"
        shapes: list[str] = []
        for name in entries:
            try:
                self.decoder(name)
            except Misfit as misfit:
                shapes.append(misfit.what)
        yield from dict.fromkeys(shapes)  # what all models share is wrong once
        ids = [source.name for source in self.corpus.sources if source.reader == "tokens"]
        if ids and tokenizer.kind != "pretrained":
            yield (
                f"source {ids[0]!r} is token ids (reader `tokens`), but tokenizer.kind = {tokenizer.kind}: they "
                "need the tokenizer that made them, for instance: tokenizer=olmo"
            )
        if tokenizer.vocab_size > model.vocab_size:
            yield f"tokenizer.vocab_size = {tokenizer.vocab_size} exceeds model.vocab_size = {model.vocab_size}"
        if self.packing.seq_len > model.max_seq_len:
            yield f"packing.seq_len = {self.packing.seq_len} exceeds model.max_seq_len = {model.max_seq_len}"
        training, warmup = self.training, self.schedule.warmup_steps
        if warmup >= training.steps:
            yield f"schedule.warmup_steps = {warmup} leaves nothing of training.steps = {training.steps}"
        if training.steps // self.checkpoints.every > MOST_CHECKPOINTS:
            yield (
                f"checkpoints.every = {self.checkpoints.every} of training.steps = {training.steps} would keep more "
                f"than {MOST_CHECKPOINTS} checkpoints"
            )
        if training.batch_size % (training.workers * training.micro_batch_size):
            yield (
                f"training.batch_size = {training.batch_size} is not a multiple of training.workers x "
                f"training.micro_batch_size = {training.workers} x {training.micro_batch_size}"
            )
        dynamics = self.learning_dynamics
        if dynamics.layers and 2 * dynamics.noise_batch > dynamics.batch_size:
            yield (
                f"learning_dynamics.noise_batch = {dynamics.noise_batch} is more than half of "
                f"learning_dynamics.batch_size = {dynamics.batch_size}: two small batches are needed"
            )


def load_params(path: Path | str = "params.yaml") -> Params:
    """Returns the settings of a params.yaml, checked.

    Raises PicoError naming the file and, for each setting that is wrong, its key, its value and the nearest right key.
    """
    path = Path(path)
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PicoError(f"{path} does not exist", mend="write it with: pico scale laptop") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise PicoError(
            f"{path} is not valid YAML: {error}", mend="correct it, or rewrite it with: pico scale laptop"
        ) from error
    return parse_params(values, where=str(path))


def parse_params(values: Any, *, where: str = "params") -> Params:
    """Returns the settings that plain nested dicts and lists hold, as `load_params` does; each must be named."""
    try:
        return Params.model_validate(values, context=FROM_FILE)
    except ValidationError as error:
        found = list(problems(error, Params))
        what = f"{where}: {len(found)} setting{'s are' if len(found) > 1 else ' is'} wrong"
        raise PicoError(
            "\n".join([what, *(f"  - {problem}" for problem in found)]),
            mend=f"edit {where} (or conf/, then: pico scale NAME); docs/settings.md lists every key",
        ) from None
