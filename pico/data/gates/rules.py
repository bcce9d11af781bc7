"""What a gate is: a rule about one column of a table, in Great Expectations' terms, and who sets its limit.

Tables may be of any size, so a gate is not shown every row: `worst` takes from each part of a table the rows that break
a rule and those with the extreme values. A rule about every row holds for these exactly where it holds for all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

WORST = 5
"""Rows shown of those that break a rule."""

BETWEEN, NOT_NULL, IN_SET = (
    "ExpectColumnValuesToBeBetween",
    "ExpectColumnValuesToNotBeNull",
    "ExpectColumnValuesToBeInSet",
)


@dataclass(frozen=True)
class Gate:
    """One rule about one column of one table."""

    name: str
    """Of the suite and the rule: `documents.length`."""
    rule: str
    """In words."""
    where: str
    """The folder that it is about."""
    expectation: str
    """The class in great_expectations.expectations."""
    arguments: dict[str, Any]
    limit: Any
    param: str = ""
    """The setting that sets the limit; empty where the format does."""
    shows: str = "failures"
    """What is observed: `min`, `max` or `range` of the column, its `values`, or the number of `failures`."""

    @property
    def column(self) -> str:
        """Of the table."""
        return self.arguments["column"]

    def broken(self, table: pd.DataFrame) -> np.ndarray:
        """Which rows break the rule, bool; a null breaks only the rule that forbids it."""
        values = table[self.column]
        if self.expectation == NOT_NULL:
            return values.isna().to_numpy()
        if self.expectation == IN_SET:
            return (~values.isin(self.arguments["value_set"]) & values.notna()).to_numpy()
        low, high = self.arguments["min_value"], self.arguments["max_value"]
        broken = np.zeros(len(values), bool)
        if low is not None:
            broken |= (values < low).fillna(False).to_numpy(bool)
        if high is not None:
            broken |= (values > high).fillna(False).to_numpy(bool)
        return broken


@dataclass(frozen=True)
class Worst:
    """What gates need to know of a table."""

    table: pd.DataFrame
    """The chosen rows, in order."""
    failures: np.ndarray
    """Rows of the whole table that break each rule: int64 (gates,)."""
    rows: int
    """Of the whole table."""


def worst(table: pd.DataFrame, gates: Sequence[Gate]) -> Worst:
    """The first rows that break each rule, those with the lowest and highest value of each column, and the counts."""
    chosen: set[int] = set()
    failures = np.zeros(len(gates), np.int64)
    for number, gate in enumerate(gates):
        broken = np.flatnonzero(gate.broken(table))
        failures[number] = len(broken)
        chosen.update(broken[:WORST].tolist())
        if gate.expectation == BETWEEN and (known := np.flatnonzero(table[gate.column].notna())).size:
            values = table[gate.column].to_numpy()[known].astype(float)
            chosen.update((int(known[values.argmin()]), int(known[values.argmax()])))
    if not chosen and len(table):
        chosen.add(0)  # a table that has rows is not an empty one
    return Worst(table.iloc[sorted(chosen)].reset_index(drop=True), failures, len(table))


def every(table: pd.DataFrame, gates: Sequence[Gate]) -> Worst:
    """All rows of a table that is small."""
    return Worst(table, np.array([gate.broken(table).sum() for gate in gates], np.int64), len(table))


def worst_of(parts: Sequence[Worst], gates: Sequence[Gate]) -> Worst:
    """The parts of one table as one."""
    tables = [part.table for part in parts if len(part.table)]
    if not tables:
        return parts[0]
    joined = worst(pd.concat(tables, ignore_index=True), gates)
    return Worst(joined.table, np.sum([part.failures for part in parts], axis=0), sum(part.rows for part in parts))


def between(
    name: str, rule: str, column: str, low: Any, high: Any, param: str = "", *, where: str, shows: str = ""
) -> Gate:
    """Every value of a column lies between limits, either of which may be None."""
    limit = low if high is None or low == high else high if low is None else [low, high]
    shows = shows or ("min" if high is None else "max" if low is None else "range")
    return Gate(
        name, rule, where, BETWEEN, {"column": column, "min_value": low, "max_value": high}, limit, param, shows
    )


def not_null(name: str, rule: str, column: str, *, where: str) -> Gate:
    """No value of a column is missing."""
    return Gate(name, rule, where, NOT_NULL, {"column": column}, 0)


def only(name: str, rule: str, column: str, value: Any, *, where: str, shows: str = "failures", limit: Any = 0) -> Gate:
    """Every value of a column is this one."""
    return Gate(name, rule, where, IN_SET, {"column": column, "value_set": [value]}, limit, "", shows)
