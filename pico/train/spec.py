"""All that one run depends on, typed and plain, and the identity by which it is known again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pico.config import Checkpoints, LearningDynamics, Optimizer, Params, Schedule, Training
from pico.errors import PicoError
from pico.files import sha256_file
from pico.model import DecoderConfig
from pico.optimizers import OptimizerSettings

SECTIONS = ("training", "optimizer", "schedule", "checkpoints", "learning_dynamics")
"""The sections of params.yaml that a run takes as they are."""


@dataclass(frozen=True)
class RunSpec:
    """One model's training."""

    model: str
    seed: int
    """Seed of the initial weights, and of the order of rows from the second epoch on."""
    decoder: DecoderConfig
    training: Training
    optimizer: OptimizerSettings
    schedule: Schedule
    checkpoints: Checkpoints
    learning_dynamics: LearningDynamics

    def __post_init__(self) -> None:
        if self.training.sharding == "full" and not self.optimizer.elementwise:
            raise whole_matrices_needed(self.optimizer.name)

    def settings(self) -> dict[str, Any]:
        """Returns all that the outcome depends on, as plain values: all but how often rescues are written."""
        return {
            "model": self.model,
            "seed": self.seed,
            "decoder": self.decoder.to_dict(),
            **{name: getattr(self, name).model_dump() for name in SECTIONS},
            "checkpoints": {"every": self.checkpoints.every},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunSpec":
        """Returns the spec of `settings`, given all of `checkpoints`; an optimizer without a name is AdamW.

        Raises pydantic.ValidationError for values that no settings file could hold.
        """
        return cls(
            model=values["model"],
            seed=values["seed"],
            decoder=DecoderConfig(**values["decoder"]),
            training=Training(**values["training"]),
            optimizer=TypeAdapter(Optimizer).validate_python({"name": "adamw", **values["optimizer"]}),
            schedule=Schedule(**values["schedule"]),
            checkpoints=Checkpoints(**values["checkpoints"]),
            learning_dynamics=LearningDynamics(**values["learning_dynamics"]),
        )


def run_spec(params: Params, model: str) -> RunSpec:
    """Returns the run of one model of the suite. Raises PicoError where settings do not fit each other."""
    if model not in params.models:
        raise PicoError(f"there is no model {model!r}", where="params.yaml: models",
                        mend=f"name one of: {', '.join(params.models)}")  # fmt: skip
    sections = {name: getattr(params, name) for name in SECTIONS}
    return RunSpec(model=model, seed=params.seed, decoder=params.decoder(model), **sections)


def data_identity(tokens: Path) -> dict[str, str]:
    """Returns the sha256 of provenance.json and of every shard of a tokens folder, by relative path."""
    provenance = tokens / "provenance.json"
    if not provenance.exists():
        raise PicoError(f"{provenance} does not exist", mend="run the stage that makes it: dvc repro prepare")
    paths = [provenance, *sorted(tokens.glob("train/*.parquet")), *sorted(tokens.glob("heldout/*.parquet"))]
    paths += sorted(tokens.glob("tinsy/*.parquet"))
    return {path.relative_to(tokens).as_posix(): sha256_file(path) for path in paths}


def run_identity(spec: RunSpec, tokens: Path, recipe: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Returns settings and data of a run, which a checkpoint must agree with to be resumed from.

    recipe: `Recipe.identity` of a recipe that is not the default one. The code of this project has no part in it, so
    that an edit without effect leaves the outs, and all that is made from them, as they were.
    """
    found = {"settings": spec.settings(), "data": data_identity(tokens)}
    return {**found, "recipe": dict(recipe)} if recipe else found


def whole_matrices_needed(optimizer: str) -> PicoError:
    """Returns the error for an optimizer that cannot work on shards."""
    return PicoError(
        f"optimizer {optimizer} needs whole matrices, but training.sharding = 'full' gives each worker a shard of them",
        where="params.yaml",
        mend="set training.sharding: none, or choose an optimizer that works element by element, such as adamw",
    )


def differing_keys(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    """Returns a line `key: theirs in the checkpoint, ours now` for every leaf at which two nested dicts differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = sorted(ours.keys() | theirs.keys())
        return [
            line
            for key in keys
            for line in differing_keys(ours.get(key), theirs.get(key), f"{prefix}.{key}" if prefix else key)
        ]
    return [] if ours == theirs else [f"{prefix}: {theirs!r} in the checkpoint, {ours!r} now"]
