"""The base of all sections: strict values, and errors that name the key, the value and the nearest right key."""

import difflib
from collections.abc import Iterator
from typing import Annotated, Any, Self

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


def known_keys(kind: Any, location: tuple[int | str, ...]) -> list[str]:
    """Returns the setting names that are allowed at a place below `kind`, such as ("corpus", "sources", 0)."""
    for part in location:
        fields = fields_of(kind)
        if part in fields:
            kind = section_of(fields[str(part)].annotation)
    return list(fields_of(kind))


def problems(error: ValidationError, kind: Any) -> Iterator[str]:
    """Yields a line for each problem of `error`, which validating a `kind` raised: key, value, and what is right."""
    for problem in error.errors():
        # A dataclass numbers the arguments that were given by position.
        parts = [list(fields_of(kind))[part] if part == problem["loc"][0] and isinstance(part, int) else part
                 for part in problem["loc"]]  # fmt: skip
        *parents, last = map(str, parts or [""])
        key, prefix = ".".join(map(str, parts)), "".join(f"{part}." for part in parents)
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            near = difflib.get_close_matches(last, known_keys(kind, problem["loc"][:-1]), n=1, cutoff=0.5)
            yield f"{key} is not a known setting" + (f"; did you mean {prefix}{near[0]}?" if near else "")
        elif problem["type"] == "missing":
            yield f"{key} is missing"
        elif problem["type"] == "unnamed":
            yield from (f"{key}.{name} is missing" for name in problem["ctx"]["names"])
        elif problem["type"] == "misfits":
            yield from problem["ctx"]["problems"]
        else:
            message = problem["msg"].removeprefix("Value error, ")
            yield f"{key} = {problem['input']!r}: {message}" if key else message
