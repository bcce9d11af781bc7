"""All that one run depends on, typed and plain, and the fingerprint by which it is known again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pico.config import Checkpoints, LearningDynamics, Optimizer, Params, Schedule, Training
from pico.errors import PicoError
from pico.files import sha256_file
from pico.model import DecoderConfig


@dataclass(frozen=True)
class RunSpec:
    """One model's training."""

    model: str
    seed: int
    """Of the initial weights and of the order of rows from the second epoch on."""
    decoder: DecoderConfig
    training: Training
    optimizer: Optimizer
    schedule: Schedule
    checkpoints: Checkpoints
    learning_dynamics: LearningDynamics

    def settings(self) -> dict[str, Any]:
        """What the outcome depends on, as plain values; how often rescue checkpoints are written is no part of it."""
        return {
            "model": self.model,
            "seed": self.seed,
            "decoder": self.decoder.to_dict(),
            "training": self.training.model_dump(),
            "optimizer": self.optimizer.model_dump(),
            "schedule": self.schedule.model_dump(),
            "checkpoints": {"every": self.checkpoints.every},
            "learning_dynamics": self.learning_dynamics.model_dump(),
        }

    def to_dict(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return {**self.settings(), "checkpoints": self.checkpoints.model_dump()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunSpec":
        """The inverse of `to_dict`. Raises pydantic.ValidationError for values that no settings file could hold."""
        return cls(
            model=values["model"],
            seed=values["seed"],
            decoder=DecoderConfig(**values["decoder"]),
            training=Training(**values["training"]),
            optimizer=Optimizer(**values["optimizer"]),
            schedule=Schedule(**values["schedule"]),
            checkpoints=Checkpoints(**values["checkpoints"]),
            learning_dynamics=LearningDynamics(**values["learning_dynamics"]),
        )


def run_spec(params: Params, model: str) -> RunSpec:
    """The run of one model of the suite. Raises PicoError where settings do not fit each other."""
    if model not in params.models:
        raise PicoError(f"there is no model {model!r}", where="params.yaml: models",
                        mend=f"name one of: {', '.join(params.models)}")  # fmt: skip
    if params.schedule.warmup_steps >= params.training.steps:
        raise PicoError(
            f"schedule.warmup_steps = {params.schedule.warmup_steps} is not below "
            f"training.steps = {params.training.steps}",
            where="params.yaml",
            mend="warm up for fewer steps, or train for more",
        )
    return RunSpec(
        model=model,
        seed=params.seed,
        decoder=params.decoder(model),
        training=params.training,
        optimizer=params.optimizer,
        schedule=params.schedule,
        checkpoints=params.checkpoints,
        learning_dynamics=params.learning_dynamics,
    )


def data_identity(tokens: Path) -> dict[str, str]:
    """sha256 of provenance.json and of every shard of a tokens folder, by relative path."""
    provenance = tokens / "provenance.json"
    if not provenance.exists():
        raise PicoError(f"{provenance} does not exist", mend="run the stage that makes it: dvc repro prepare")
    paths = [provenance, *sorted(tokens.glob("train/*.parquet")), *sorted(tokens.glob("heldout/*.parquet"))]
    paths += sorted(tokens.glob("tinsy/*.parquet"))
    return {path.relative_to(tokens).as_posix(): sha256_file(path) for path in paths}


def identity(spec: RunSpec, tokens: Path) -> dict[str, Any]:
    """Settings and data of a run: what a checkpoint must agree with to be resumed from."""
    return {"settings": spec.settings(), "data": data_identity(tokens)}


def code_identity() -> dict[str, str]:
    """sha256 of the code that training runs, and torch's version: changed code starts afresh, in a folder of its own.

    Not in trainer.json, so that an edit without effect leaves the outs, and all that is made from them, as they were.
    """
    package = Path(__file__).parents[1]
    paths = [package / "checkpoint.py", package / "data" / "loader.py"]
    paths += [*package.glob("train/*.py"), *package.glob("model/*.py")]
    found = {path.relative_to(package).as_posix(): sha256_file(path) for path in sorted(paths)}
    return {**found, "torch": torch.__version__}


def differing_keys(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    """`key: theirs -> ours` for every leaf at which two nested dicts differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = sorted(ours.keys() | theirs.keys())
        return [
            line
            for key in keys
            for line in differing_keys(ours.get(key), theirs.get(key), f"{prefix}.{key}" if prefix else key)
        ]
    return [] if ours == theirs else [f"{prefix}: {theirs!r} in the checkpoint, {ours!r} now"]
