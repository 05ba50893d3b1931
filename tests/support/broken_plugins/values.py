"""Faults with values and rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, ClassVar

from .base import Fault


class ChangesRows(Fault):
    """Changes each value in the rows."""

    change: ClassVar[Callable[[Any], Any]]

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        change = type(self).change
        rows = super().execute(raw, query, args)
        return [{name: change(value) for name, value in row.items()} for row in rows]


class ForgetsZones(ChangesRows):
    """Gives instants without a time zone."""

    clause = "reads"
    why = "list_jobs gives"
    change = staticmethod(lambda v: v.replace(tzinfo=None) if isinstance(v, datetime) else v)


class TakesAllForUtc(ChangesRows):
    """Takes the session's time zone for UTC."""

    clause = "other_time_zone"
    why = "an instant came back as"
    change = staticmethod(
        lambda v: v.replace(tzinfo=timezone.utc) if isinstance(v, datetime) else v
    )


class BindsLocalTime(Fault):
    """Binds an instant as a time of day, which the session's time zone then shifts."""

    clause = "other_time_zone"
    why = "an instant came back as"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        for name, value in args.items():
            if isinstance(value, datetime):
                args[name] = value.astimezone(timezone.utc).replace(tzinfo=None)
        return super().execute(raw, query, args)


class DropsMicroseconds(Fault):
    """Binds instants to the second."""

    clause = "values_come_back"
    why = "timestamptz came back as"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        for name, value in args.items():
            if isinstance(value, datetime):
                args[name] = value.replace(microsecond=0)
        return super().execute(raw, query, args)


class IntegersAsFloats(ChangesRows):
    """Reads integers as a well-known language does."""

    clause = "values_come_back"
    why = "bigint came back as 9007199254740992, not 9007199254740993"
    change = staticmethod(lambda v: int(float(v)) if type(v) is int and v < 2**60 else v)


class NumbersForBooleans(ChangesRows):
    """Gives 0 and 1, which equal False and True."""

    clause = "values_come_back"
    why = "boolean came back as 1, not True"
    change = staticmethod(lambda v: int(v) if isinstance(v, bool) else v)


class RoundsFloats(ChangesRows):
    """Gives floats to fifteen digits."""

    clause = "values_come_back"
    why = "float came back as"
    change = staticmethod(lambda v: float(f"{v:.15g}") if isinstance(v, float) else v)


class CutsRows(Fault):
    """Fetches a hundred rows."""

    clause = "all_rows"
    why = "of 2500 rows, 100 arrived"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        return super().execute(raw, query, args)[:100]


class CutsResults(ChangesRows):
    """Cuts texts at 64 kB."""

    clause = "all_rows"
    why = "of 2,000,003 characters, 65536 are"
    change = staticmethod(lambda v: v[:65_536] if isinstance(v, str) else v)


class LowersNames(Fault):
    """Lowers the names of columns."""

    clause = "all_rows"
    why = "the columns are ['upper'"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        return [
            {name.lower(): value for name, value in row.items()}
            for row in super().execute(raw, query, args)
        ]


class LeavesNullsAway(Fault):
    """Makes rows without the columns that are NULL."""

    clause = "values_come_back"
    why = "the columns are"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        return [
            {name: value for name, value in row.items() if value is not None}
            for row in super().execute(raw, query, args)
        ]


class Reorders(Fault):
    """Gives rows in an order of its own."""

    clause = "batch_order"
    why = "the jobs behind the ids are"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        return super().execute(raw, query, args)[::-1]


class ReordersLargeBatches(Fault):
    """Sorts ids as texts."""

    clause = "batch_order"
    why = "the jobs behind the ids are"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        rows = super().execute(raw, query, args)
        return sorted(rows, key=lambda row: str(row["id"])[-2:]) if len(rows) > 200 else rows


class ReusesRows(Fault):
    """Gives the same list for each result."""

    clause = "rows_are_the_callers"
    why = "after another query, the rows are"
    rows: ClassVar[list[Any]] = []

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        self.rows[:] = super().execute(raw, query, args)
        return self.rows


class CachesReads(Fault):
    """Keeps the result of a query."""

    clause = "rows_are_the_callers"
    why = "rows that their owner changed come back changed"
    kept: ClassVar[dict[Any, Any]] = {}

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        key = (id(raw), query, *args.items())
        if key not in self.kept:
            self.kept[key] = super().execute(raw, query, args)
        return self.kept[key]


class NoRowsIsNone(Fault):
    """Says "not mine" where there are no rows."""

    clause = "rows_are_dicts"
    why = "UnsupportedConnection"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        return super().execute(raw, query, args) or None


class RowsAreTuples(Fault):
    """Gives rows as the driver does."""

    clause = "rows_are_dicts"
    why = "returned tuple for a row"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        return [tuple(row.values()) for row in super().execute(raw, query, args)]


class StatusForRows(Fault):
    """Gives a row for a statement without rows."""

    clause = "rows_are_dicts"
    why = "INSERT INTO orders VALUES (1) gives"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        rows = super().execute(raw, query, args)
        return rows or ([{"status": "INSERT 0 1"}] if query.startswith("INSERT") else [])


class DoublesPercents(Fault):
    """Leaves percent signs doubled."""

    clause = "values_come_back"
    why = "percent came back as '100%%', not '100%'"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        return super().execute(raw, query.replace("%%", "%%%%"), args)


class ForgetsPercentsWithoutArguments(Fault):
    """Passes a query without arguments on as it is."""

    clause = "percent_signs"
    why = "operator does not exist"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        return super().execute(raw, query if args else query.replace("%%", "%%%%"), args)


class ReplacesColons(Fault):
    """Takes every word after a colon for a placeholder."""

    clause = "values_come_back"
    why = "literal came back as"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        return super().execute(raw, re.sub(r"(?<!:):name", "NULL", query), args)


class BindsOnce(Fault):
    """Binds a parameter at its first place alone."""

    clause = "values_come_back"
    why = "again came back as"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        first, found, rest = query.partition("%(text)s")
        return super().execute(raw, first + found + rest.replace("%(text)s", "NULL"), args)


class ShoutsStatuses(Fault):
    """Gives the names of a status as its driver spells them."""

    clause = "cancel_and_status"
    why = "'TODO' is not a valid Status"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        rows = super().execute(raw, query, args)
        return [
            {name: value.upper() if name == "status" else value for name, value in row.items()}
            for row in rows
        ]
