"""The user's own expectation suites: files as Great Expectations writes them, evaluated on tables of this project.

A suite is data from outside. It may only name the library's own expectations; those that hold SQL are refused, and so
is whatever would be looked up elsewhere. Nothing of it is run, and the tables are opened for reading alone.
"""

import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from shutil import rmtree
from typing import Any

import pyarrow as pa
from pydantic import Field, ValidationError

from pico.config import ExpectationSuite, Section
from pico.errors import PicoError
from pico.expectations.data_docs import write_data_docs
from pico.expectations.evaluation import SHOWN, Tables, error_of

SETTING = "params.yaml: gates.suites"
KEYS = {
    "documents": ("data/documents", ["source", "row", "id"]),
    "tokens": ("data/tokens", ["file", "row"]),
    "benchmarks": ("data/benchmarks", ["benchmark", "example"]),
    "metrics": ("data/analysis", ["step", "metric", "component", "data_type", "layer", "head", "split"]),
    "results": ("data/evaluation", ["step", "task", "measure"]),
}
"""Table -> the folder that it is about, and the columns that name a row of it."""
MOST_BYTES = 2**20
REFUSED = {
    "unexpected_rows_expectation": "holds SQL",
    "expect_query_results_to_match_comparison": "holds SQL",
    "expect_table_row_count_to_equal_other_table": "is about another table",
}
"""Expectations that are not run, and why."""
OURS = {"batch_id", "result_format", "catch_exceptions"}
"""Arguments that this project sets."""


class _Expectation(Section):
    """An expectation as the library writes it; this project uses the first two keys."""

    type: str
    kwargs: dict[str, Any] = Field(default_factory=dict)
    id: Any = None
    meta: Any = None
    notes: Any = None
    description: Any = None
    severity: Any = None
    success_on_last_run: Any = None
    expectation_context: Any = None
    rendered_content: Any = None


class _Suite(Section):
    """A suite as the library writes it; this project uses the expectations."""

    expectations: list[_Expectation] = Field(min_length=1)
    name: Any = None
    id: Any = None
    meta: Any = None
    notes: Any = None
    suite_parameters: dict[str, Any] | None = Field(default=None, max_length=0)


@dataclass(frozen=True)
class UserSuite:
    """A suite that was read and understood."""

    name: str
    """The name of its file, without the ending."""
    file: str
    on: str
    """The table: a key of KEYS."""
    expectations: list[Any]
    """Objects of Great Expectations."""

    def mentions(self, column: str) -> bool:
        """Tells whether an expectation names a column."""
        return any(
            column in re.findall(r"\w+", text)
            for one in self.expectations
            for text in _strings(dict(one.configuration.kwargs))
        )


def read_suites(settings: Sequence[ExpectationSuite], on: Sequence[str]) -> list[UserSuite]:
    """Reads the suites on some tables. Raises PicoError naming file and key where one is wrong."""
    names = [Path(suite.file).stem for suite in settings]
    for number, name in enumerate(names):
        if name in names[:number] or not re.fullmatch(r"[\w-]+", name, re.ASCII):
            raise PicoError(
                f"{settings[number].file} cannot be shown: its name {name!r} is taken, or holds other characters than "
                "letters, digits, _ and -",
                where=f"{SETTING}[{number}].file",
                mend="name the file otherwise",
            )
    return [_read(suite) for suite in settings if suite.on in on]


def evaluate_suites(
    tables: Tables, suites: Sequence[UserSuite], places: Mapping[str, str]
) -> dict[str, list[tuple[Any, dict[str, Any]]]]:
    """Evaluates suites, each on the whole of its table. Returns what Great Expectations gave, and the result, of each
    expectation, by the name of the suite's page in the Data Docs.

    places: the name in `tables` of each table of KEYS. Raises PicoError where an expectation cannot be evaluated.
    """
    return {f"suite-{suite.name}": _evaluate(tables, suite, places[suite.on]) for suite in suites}


def check_table(
    on: str, parts: Iterable[pa.Table], settings: Sequence[ExpectationSuite], pages: Path, about: str = ""
) -> None:
    """Evaluates the user's suites on one table and shows them as Data Docs in `pages`, which is there afterwards only
    where there are such suites.

    on: a key of KEYS; parts: the table, some rows at a time. about: the model, for messages. Raises PicoError naming
    each expectation that fails.
    """
    rmtree(pages, ignore_errors=True)
    suites = read_suites(settings, (on,))
    if not suites:
        return
    with (
        tempfile.TemporaryDirectory(prefix="suites-") as folder,
        closing(Tables(Path(folder) / "tables.sqlite")) as tables,
    ):
        for part in parts:
            tables.append(on, part)
        answers = evaluate_suites(tables, suites, {on: on})
    write_data_docs(answers, pages, title=f"Expectations on {on}{about and f' of {about}'}")
    failed = [result for page in answers.values() for _, result in page if not result["passed"]]
    if failed:
        lines = [f"{len(failed)} expectations on {on}{about and f' of {about}'} failed"]
        for result in failed:
            lines.append(f"  - {result['gate']}: {result['rule']}: observed {result['observed']}, limit "
                         f"{result['limit']}")  # fmt: skip
            lines += [f"      {', '.join(f'{k}={v}' for k, v in example.items())}" for example in result["examples"]]
        raise PicoError("\n".join(lines), where=str(pages / "index.html"), mend=f"see these, or change {SETTING}")


def _read(setting: ExpectationSuite) -> UserSuite:
    try:
        suite = _Suite.model_validate(_parse(Path(setting.file)))
    except ValidationError as error:
        problem = error.errors()[0]
        raise _wrong(problem["msg"], setting.file, *problem["loc"]) from error
    own = [_expectation(entry, setting.file, number) for number, entry in enumerate(suite.expectations)]
    return UserSuite(Path(setting.file).stem, setting.file, setting.on, own)


def _parse(path: Path) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.events import AliasEvent

    try:
        if path.stat().st_size > MOST_BYTES:
            raise PicoError(f"{path} has more than {MOST_BYTES:,} bytes", where=SETTING, mend="name a suite")
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return json.loads(text)
        if any(isinstance(event, AliasEvent) for event in YAML(typ="safe", pure=True).parse(text)):
            raise PicoError(f"{path} holds aliases", where=SETTING, mend="write each value where it is meant")
        return YAML(typ="safe", pure=True).load(text)
    except OSError as error:
        raise PicoError(f"{path} cannot be read: {error.strerror}", where=SETTING, mend="correct the path") from error
    except (ValueError, RecursionError, YAMLError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise PicoError(f"{path} is no {kind}: {error}", where=SETTING, mend="write it with Great Expectations: "
                        "json.dumps(suite.to_json_dict())") from error  # fmt: skip


def _expectation(entry: _Expectation, file: str, number: int) -> Any:
    from great_expectations.compatibility import pydantic
    from great_expectations.exceptions import GreatExpectationsError

    kind, kwargs, types, at = entry.type, entry.kwargs, _types(), ("expectations", number)
    if kind in REFUSED:
        raise _wrong(f"{kind} {REFUSED[kind]}, which is not run", file, *at, "type")
    if kind not in types:
        near = get_close_matches(kind, types, 1)
        raise _wrong(f"{kind!r} is no expectation of Great Expectations" + (f"; {near[0]} is" if near else ""), file,
                     *at, "type")  # fmt: skip
    for name in sorted(OURS & set(kwargs)):
        raise _wrong(f"{name} is set by this project", file, *at, "kwargs", name)
    if "$PARAMETER" in set(_strings(kwargs)):
        raise _wrong("$PARAMETER is looked up when a suite is run", file, *at, "kwargs")
    for name in sorted(set(kwargs) - set(types[kind].__fields__)):
        raise _wrong(f"{kind} has no argument {name!r}", file, *at, "kwargs", name)
    try:
        return types[kind](**kwargs)
    except (pydantic.ValidationError, GreatExpectationsError, TypeError, ValueError) as error:
        raise _wrong(f"{kind}: {' '.join(str(error).split())[:500]}", file, *at, "kwargs") from error


def _types() -> dict[str, Any]:
    from great_expectations.expectations import core
    from great_expectations.util import camel_to_snake

    names = [name for name in dir(core) if name.startswith("Expect") or name == "UnexpectedRowsExpectation"]
    return {camel_to_snake(name): getattr(core, name) for name in names}


def _evaluate(tables: Tables, suite: UserSuite, table: str) -> list[tuple[Any, dict[str, Any]]]:
    folder, keys = KEYS[suite.on]
    if not tables.rows(table):
        raise PicoError(f"the table {suite.on} has no rows", where=suite.file, mend="a suite on it says nothing")
    answers = tables.evaluate(table, suite.expectations, keys)
    entries = []
    for number, (expectation, found) in enumerate(zip(suite.expectations, answers, strict=True)):
        if trouble := error_of(found):
            raise PicoError(
                f"Great Expectations cannot evaluate {expectation.expectation_type}: {trouble.splitlines()[0][:500]}",
                where=f"{suite.file}: expectations.{number}",
                mend=f"the columns of {suite.on} are {', '.join(tables.columns(table))}; see docs/gates.md",
            )
        kwargs = dict(expectation.configuration.kwargs)
        column = kwargs.pop("column", "")
        failures = found.result.get("unexpected_count", 0 if found.success else 1)
        words = expectation.expectation_type.removeprefix("expect_").replace("_", " ")
        result = {
            "gate": suite.name,
            "rule": words + (f": {column}" if column else ""),
            "where": folder,
            "expectation": type(expectation).__name__,
            "observed": json.loads(json.dumps(found.result.get("observed_value", failures), default=str)),
            "limit": ", ".join(f"{key} {json.dumps(value, default=str)}" for key, value in kwargs.items()),
            "param": "gates.suites",
            "passed": bool(found.success),
            "failures": failures,
            "examples": [] if found.success else tables.examples(table, found)[:SHOWN],
        }
        entries.append((found, result))
    return entries


def _wrong(what: str, file: str, *key: str | int) -> PicoError:
    return PicoError(what, where=f"{file}: {'.'.join(map(str, key))}",
                     mend="correct the suite; docs/gates.md says what one may hold")  # fmt: skip


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strings(key)
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)
