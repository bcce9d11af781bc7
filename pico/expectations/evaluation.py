"""Great Expectations on whole tables: its SQL engine decides, over tables in one SQLite file.

SQLite is the database that the library knows and that needs no server. It reads a page at a time, so the memory that is
taken does not grow with a table. The library runs on an ephemeral context, with analytics, progress bars and its own
Data Docs off, and on a connection that cannot write.
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import pyarrow as pa

from pico.errors import PicoError
from pico.files import canonical_json

SHOWN = 5
"""Rows shown of those that break a rule."""


class Tables:
    """Tables in a SQLite file: written a part at a time, then read by Great Expectations.

    A table exists from the first part that has rows on. Its rows are read in the order of their numbers.
    """

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.path = path.resolve()
        self._connection = sqlite3.connect(self.path)
        for pragma in ("journal_mode = off", "synchronous = off"):  # the file is made anew after a crash
            self._connection.execute(f"pragma {pragma}")
        self._columns: dict[str, dict[str, str]] = {}
        self._source: Any = None

    def append(self, name: str, part: pa.Table | pd.DataFrame, first: int | None = None) -> None:
        """Adds rows to a table. NaN is a null; lists and records are kept as JSON.

        first: the number of the first row, for parts that come out of order; they follow one another by default.
        """
        table = pa.Table.from_pandas(part, preserve_index=False) if isinstance(part, pd.DataFrame) else part
        if not table.num_rows:
            return
        if name not in self._columns:
            self._columns[name] = {field.name: _sqlite_type(field.type) for field in table.schema}
            kinds = ", ".join(f"{_quoted(column)} {kind}" for column, kind in self._columns[name].items())
            self._connection.execute(f"create table {_quoted(name)} ({kinds})")
        columns = ["rowid"] * (first is not None) + [_quoted(column) for column in table.column_names]
        insert = f"insert into {_quoted(name)} ({', '.join(columns)}) values ({', '.join('?' * len(columns))})"
        try:
            for batch in table.to_batches(2**14):
                values = [_values(column) for column in batch.columns]
                if first is not None:
                    values.insert(0, list(range(first, first + batch.num_rows)))
                    first += batch.num_rows
                self._connection.executemany(insert, zip(*values, strict=True))
        except sqlite3.Error as error:
            raise PicoError(f"{self.path} cannot be written: {error}", mend="make room on this disk") from error

    def join(self, name: str, left: str, right: str) -> None:
        """Makes a view `name` of the columns of two tables, row by row."""
        self._columns[name] = self._columns[left] | self._columns[right]
        columns = [f"{_quoted(table)}.{_quoted(column)}" for table in (left, right) for column in self._columns[table]]
        self._connection.execute(
            f"create view {_quoted(name)} as select {', '.join(columns)} from {_quoted(left)} "
            f"join {_quoted(right)} on {_quoted(left)}.rowid = {_quoted(right)}.rowid"
        )

    def columns(self, name: str) -> list[str]:
        """Returns the names of a table's columns; none where it has no rows."""
        return list(self._columns.get(name, ()))

    def rows(self, name: str) -> int:
        """Returns how many rows a table has."""
        return self._one(f"select count(*) from {_quoted(name)}")[0] if name in self._columns else 0

    def extremes(self, name: str, column: str) -> tuple[Any, Any]:
        """Returns the lowest and the highest value of a column; nulls do not count."""
        return self._one(f"select min({_quoted(column)}), max({_quoted(column)}) from {_quoted(name)}")

    def values(self, name: str, column: str) -> list[Any]:
        """Returns the distinct values of a column in order, without null."""
        query = f"select distinct {_quoted(column)} from {_quoted(name)} where {_quoted(column)} is not null order by 1"
        return [value for (value,) in self._connection.execute(query)]

    def evaluate(self, name: str, expectations: Sequence[Any], keys: Sequence[str] = (), shown: int = SHOWN) -> list:
        """Returns what Great Expectations says of a table: one ExpectationValidationResult an expectation, in order.

        keys: the columns that name a row. Of the rows that break a rule, the first `shown` are listed.
        """
        import great_expectations as gx

        if self._source is None:
            self._connection.commit()
            path = quote(quote(str(self.path)))  # SQLAlchemy undoes one, SQLite the other
            database = f"sqlite:///file:{path}?mode=ro&uri=true"
            self._source = _context().data_sources.add_sqlite("tables", connection_string=database)
        # A name for each call: the context keeps all assets.
        asset = self._source.add_table_asset(f"{name} {len(self._source.assets)}", table_name=name)
        batch = asset.add_batch_definition_whole_table("all").get_batch()
        for number, expectation in enumerate(expectations):
            expectation.meta = {"number": number}
        form = {"result_format": "SUMMARY", "partial_unexpected_count": shown}
        if keys:
            form["unexpected_index_column_names"] = list(keys)
        found = batch.validate(gx.ExpectationSuite(name=name, expectations=list(expectations)), result_format=form)
        in_order = sorted(found.results, key=lambda result: result.expectation_config.meta["number"])
        if len(in_order) != len(expectations):
            raise RuntimeError(f"Great Expectations answered {len(in_order)} of {len(expectations)} expectations")
        return in_order

    def examples(self, name: str, found: Any) -> list[dict[str, Any]]:
        """Returns the rows that a result lists, with the values as they were written."""
        kinds = self._columns[name]
        return [
            {key: "none" if value is None else bool(value) if kinds.get(key) == "BOOLEAN" else plain(value)
             for key, value in row.items()}
            for row in found.result.get("partial_unexpected_index_list") or [] if isinstance(row, dict)
        ]  # fmt: skip

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()
        if self._source is not None:
            self._source.get_execution_engine().close()

    def _one(self, query: str) -> tuple:
        return self._connection.execute(query).fetchone()


def error_of(found: Any) -> str:
    """Returns the message of an exception inside an expectation, or "" where there was none.

    The library reports these in one of two forms.
    """
    information = found.exception_info or {}
    entries = [information] if "raised_exception" in information else list(information.values())
    return "; ".join(str(e.get("exception_message")) for e in entries if isinstance(e, dict) and e["raised_exception"])


def plain(value: Any) -> Any:
    """Returns JSON's own type for numpy's, a whole number as such, and a word for NaN."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return "none" if value != value else int(value) if value.is_integer() else value
    return value


def _context() -> Any:
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    config = DataContextConfig(
        analytics_enabled=False,
        progress_bars=ProgressBarsConfig(globally=False),
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
    )
    return gx.get_context(project_config=config, mode="ephemeral")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _sqlite_type(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "BOOLEAN"
    return "INTEGER" if pa.types.is_integer(kind) else "REAL" if pa.types.is_floating(kind) else "TEXT"


def _values(column: pa.Array) -> list[Any]:
    values = column.to_pylist()
    if pa.types.is_nested(column.type):
        return [None if value is None else canonical_json(value) for value in values]
    if _sqlite_type(column.type) != "TEXT" or pa.types.is_null(column.type):
        return values
    return [None if value is None else str(value) for value in values]
