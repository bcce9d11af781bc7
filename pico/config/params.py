"""Typed, strict settings: params.yaml in, one frozen object out. Read once, at the edge.

An unknown or mistyped key is an error that names it and the nearest right one.
"""

import difflib
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pico.config.analysis import Analysis, Behaviour, Benchmarks, Evaluation, Export, Report
from pico.config.base import Section
from pico.config.data import Cleaning, Corpus, Gates, Packing, Tokenizer
from pico.config.training import (
    Checkpoints,
    LearningDynamics,
    Live,
    Model,
    Schedule,
    Suite,
    Training,
    Width,
)
from pico.errors import PicoError
from pico.optimizers import OPTIMIZERS, Optimizer

MOST_CHECKPOINTS = 100_000
"""Of a run."""


class Params(Section):
    """All of params.yaml."""

    suite: Suite
    seed: int
    """Of the initial weights and of the order of the epochs after the first."""
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

    @model_validator(mode="after")
    def _parts_fit(self) -> "Params":
        names, entries = self.suite.models, list(self.models)
        if sorted(names) != sorted(entries):
            raise ValueError(f"suite.models lists {names}, but models has entries for {entries}: they must be the same")
        model = self.model
        if model.attention_n_heads % model.attention_n_kv_heads:
            raise ValueError(
                f"model.attention_n_heads = {model.attention_n_heads} is not a multiple of "
                f"model.attention_n_kv_heads = {model.attention_n_kv_heads}"
            )
        unit = model.attention_n_heads * (2 if model.positions == "rotary" else 1)
        for name, width in self.models.items():
            if width.d_model % unit:
                raise ValueError(
                    f"models.{name}.d_model = {width.d_model} is not a multiple of "
                    f"{'2 x ' if unit > model.attention_n_heads else ''}model.attention_n_heads = {unit}: every head "
                    "needs an equal width, and an even one for rotary embeddings"
                )
        ready = [source.name for source in self.corpus.sources if source.reader == "tokens"]
        if ready and self.tokenizer.kind != "pretrained":
            raise ValueError(
                f"source {ready[0]!r} is token ids (reader `tokens`), but tokenizer.kind = {self.tokenizer.kind}: they "
                "need the tokenizer that made them, for instance: tokenizer=olmo"
            )
        if self.tokenizer.vocab_size > model.vocab_size:
            raise ValueError(
                f"tokenizer.vocab_size = {self.tokenizer.vocab_size} exceeds model.vocab_size = {model.vocab_size}"
            )
        if self.packing.seq_len > model.max_seq_len:
            raise ValueError(
                f"packing.seq_len = {self.packing.seq_len} exceeds model.max_seq_len = {model.max_seq_len}"
            )
        if self.schedule.warmup_steps >= self.training.steps:
            raise ValueError(
                f"schedule.warmup_steps = {self.schedule.warmup_steps} leaves nothing of training.steps = "
                f"{self.training.steps}"
            )
        if self.training.steps // self.checkpoints.every > MOST_CHECKPOINTS:
            raise ValueError(
                f"checkpoints.every = {self.checkpoints.every} of training.steps = {self.training.steps} would keep "
                f"more than {MOST_CHECKPOINTS} checkpoints"
            )
        dynamics = self.learning_dynamics
        if dynamics.layers and 2 * dynamics.noise_batch > dynamics.batch_size:
            raise ValueError(
                f"learning_dynamics.noise_batch = {dynamics.noise_batch} is more than half of "
                f"learning_dynamics.batch_size = {dynamics.batch_size}: two small batches are needed"
            )
        training = self.training
        if training.batch_size % (training.workers * training.micro_batch_size):
            raise ValueError(
                f"training.batch_size = {training.batch_size} is not a multiple of training.workers x "
                f"training.micro_batch_size = {training.workers} x {training.micro_batch_size}"
            )
        return self


def load_params(path: Path | str = "params.yaml") -> Params:
    """Reads and checks params.yaml. Raises PicoError naming the file, the key, the value and the nearest right key."""
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
    """Checks plain nested dicts and lists; see `load_params`."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        problems = [_describe(problem) for problem in error.errors()]
        what = f"{where}: {len(problems)} setting{'s are' if len(problems) > 1 else ' is'} wrong"
        raise PicoError(
            "\n".join([what, *(f"  - {problem}" for problem in problems)]),
            mend=f"edit {where} (or conf/, then: pico scale NAME); docs/settings.md lists every key",
        ) from None


def _describe(problem: Any) -> str:
    """One line for one pydantic problem: key, value, and what would be right."""
    location, named = problem["loc"], None
    if location[:1] == ("optimizer",) and location[1:2] and location[1] in OPTIMIZERS:  # whose settings these are
        location, named = ("optimizer", *location[2:]), location[1]
    key = ".".join(map(str, location))
    if problem["type"] == "extra_forbidden":
        known = list(OPTIMIZERS[named].model_fields) if named else known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        prefix = "".join(f"{part}." for part in location[:-1])
        of = f"{key} is not a known setting" + (f" of {named}, which has {', '.join(known)}" if named else "")
        return of + (f"; did you mean {prefix}{near[0]}?" if near else "")
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"].startswith("union_tag"):
        return f"{key}.name is none of {', '.join(OPTIMIZERS)}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key} = {problem['input']!r}: {message}" if key else message


def known_keys(location: tuple) -> list[str]:
    """The setting names allowed at a place in the tree, for instance ("optimizer",)."""
    kind: Any = Params
    for part in location:
        if isinstance(part, int):
            continue
        annotation = kind.model_fields[part].annotation if part in getattr(kind, "model_fields", {}) else kind
        kind = section_of(annotation)
    return list(getattr(kind, "model_fields", {}))


def section_of(annotation: Any) -> Any:
    """The Section inside `annotation`: itself, or the element of a list, dict or optional."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in reversed(getattr(annotation, "__args__", ())):
        if (found := section_of(argument)) is not None:
            return found
    return None
