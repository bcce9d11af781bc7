"""The base of all sections: strict values, and errors that name the key, the value and the nearest right key."""

import difflib
from collections.abc import Iterator
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""The name of a scale or a model; a folder has it, and so has a flow run."""

STRICT = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)
"""No unknown keys, no silent conversion of text to numbers; the docstring below a field is its description."""
FROM_FILE = {"every setting is named": True}
"""The validation context of params.yaml; see `Section`."""


class Section(BaseModel):
    """A group of settings: immutable, no unknown keys, no silent conversion of text to numbers.

    A default serves callers in Python, and runs that were written before the setting existed. It never serves
    params.yaml, where DVC would not see it change: there, only a setting that is null by default may be left out.
    """

    model_config = ConfigDict(**STRICT, frozen=True)

    @model_validator(mode="after")
    def _names_every_setting(self, info: ValidationInfo) -> Self:
        if info.context == FROM_FILE:
            unnamed = [
                name
                for name, field in fields_of(type(self)).items()
                if name not in self.model_fields_set and field.get_default(call_default_factory=True) is not None
            ]
            if unnamed:
                raise PydanticCustomError("unnamed", "settings are missing", {"names": unnamed})
        return self


def fields_of(kind: Any) -> dict[str, FieldInfo]:
    """Returns the fields of a Section or of a pydantic dataclass by name; none for anything else."""
    return getattr(kind, "__pydantic_fields__", {})


def section_of(annotation: Any) -> Any:
    """Returns the Section inside `annotation`: itself, or the element of a list, dict or optional; None without one."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in reversed(getattr(annotation, "__args__", ())):
        if (found := section_of(argument)) is not None:
            return found
    return None


def choices_of(field: FieldInfo) -> dict[str, Any]:
    """Returns the classes that a setting of the section chooses among, by its value, as `optimizer.name` does."""
    tag = field.discriminator
    kinds = get_args(field.annotation) if isinstance(tag, str) else ()
    return {fields_of(kind)[str(tag)].default: kind for kind in kinds}


def settings_at(kind: Any, location: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """Returns the keys of a place below `kind`, such as ("corpus", "sources", 0), and the class of its settings.

    pydantic's places also name the class that was chosen, ("optimizer", "adamw", "lr"), which is no key.
    """
    keys: list[str] = []
    choices: dict[str, Any] = {}
    for part in location:
        if part in choices:
            kind, choices = choices[str(part)], {}
            continue
        keys.append(str(part))
        field = fields_of(kind).get(str(part))
        if field is not None:
            kind, choices = section_of(field.annotation), choices_of(field)
    return keys, kind


def problems(error: ValidationError, kind: Any) -> Iterator[str]:
    """Yields a line for each problem of `error`, which validating a `kind` raised: key, value, and what is right."""
    for problem in error.errors():
        # A dataclass numbers the arguments that were given by position.
        parts = tuple(list(fields_of(kind))[part] if part == problem["loc"][0] and isinstance(part, int) else part
                      for part in problem["loc"])  # fmt: skip
        keys, _ = settings_at(kind, parts)
        *parents, last = keys or [""]
        key, prefix = ".".join(keys), "".join(f"{part}." for part in parents)
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = list(fields_of(settings_at(kind, parts[:-1])[1]))
            near = difflib.get_close_matches(last, known, n=1, cutoff=0.5)
            chosen = parts[-2] if len(keys) < len(parts) else None
            of = f" of {chosen}, which has {', '.join(known)}" if chosen else ""
            yield f"{key} is not a known setting{of}" + (f"; did you mean {prefix}{near[0]}?" if near else "")
        elif problem["type"] == "missing":
            yield f"{key} is missing"
        elif problem["type"].startswith("union_tag"):
            field = fields_of(settings_at(kind, parts[:-1])[1])[last]
            yield f"{key}.{field.discriminator} is none of {', '.join(choices_of(field))}"
        elif problem["type"] == "unnamed":
            yield from (f"{key}.{name} is missing" for name in problem["ctx"]["names"])
        elif problem["type"] == "misfits":
            yield from problem["ctx"]["problems"]
        else:
            message = problem["msg"].removeprefix("Value error, ")
            yield f"{key} = {problem['input']!r}: {message}" if key else message
