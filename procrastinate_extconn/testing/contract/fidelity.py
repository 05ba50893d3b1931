"""What is stored is what was sent, and what comes back is what is stored."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import example, given
from procrastinate.jobs import Job
from procrastinate.manager import JobManager

from .caller import Caller, new_job
from .clause import clause
from .strategies import HOSTILE, few, jobs, values

_VALUES = """
    SELECT %(boolean)s::boolean AS boolean, %(bigint)s::bigint AS bigint, %(float)s::float8 AS float,
           %(text)s::text AS text, %(timestamptz)s::timestamptz AS timestamptz,
           %(bigints)s::bigint[] AS bigints, %(texts)s::text[] AS texts,
           %(text)s::text AS again, '100%%' AS percent, ':name $1 ? {}' AS literal
"""
_INSTANT = datetime(2031, 12, 31, 23, 59, 59, 999999, timezone(timedelta(hours=5, minutes=45)))
_HOSTILE_JOBS = [
    new_job({"text": text, text: 2**70}, lock=text, queueing_lock=text, scheduled_at=_INSTANT)
    for text in HOSTILE
]
_HOSTILE_TEXTS: dict[str, Any] = {
    **dict.fromkeys(["boolean", "bigint", "float", "text", "timestamptz"]),
    "bigints": [],
    "texts": [*HOSTILE, "null", "", "\f"],
}
_HOSTILE_SETTINGS = {
    "standard_conforming_strings": "off",
    "backslash_quote": "off",
    "escape_string_warning": "on",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kathmandu",
    "plan_cache_mode": "force_generic_plan",
    "quote_all_identifiers": "on",
}


class FidelityClauses:
    """Payloads, locks, values, order, instants."""

    @few
    @example(batch=_HOSTILE_JOBS)
    @given(batch=jobs)
    @clause
    async def test_jobs_are_stored_as_sent(self, caller: Caller, batch: list[Job]) -> None:
        """Whatever is deferred is stored as Procrastinate's own psycopg connector stores it."""
        await _stored_as_by_psycopg(caller, batch)

    @clause
    async def test_hostile_settings(self, caller: Caller) -> None:
        """So it is on a session whose settings change how text, arrays and dates are read."""
        for name, setting in _HOSTILE_SETTINGS.items():
            await caller.execute(f"SET {name} = '{setting}'")
        await _stored_as_by_psycopg(caller, _HOSTILE_JOBS)

    @few
    @given(sent=values)
    @example(sent=_HOSTILE_TEXTS)
    @clause
    async def test_values_come_back(self, caller: Caller, sent: dict[str, Any]) -> None:
        """Each type of value that a plugin is asked to bind comes back equal, and literals stay as they are."""
        [row] = await caller.query(_VALUES, **sent)
        expected = {**sent, "again": sent["text"], "percent": "100%", "literal": ":name $1 ? {}"}
        for name, value in expected.items():
            assert row[name] == value, f"{name} came back as {row[name]!r}, not {value!r}"

    @clause
    async def test_rows_are_dicts(self, caller: Caller) -> None:
        """Rows are dicts in the query's order, and a statement without rows gives ``[]``."""
        rows = await caller.query("SELECT n, n::text AS t FROM generate_series(1, 3) AS n")
        assert rows == [{"n": n, "t": str(n)} for n in (1, 2, 3)], f"the rows are {rows!r}"
        for query in (
            "SELECT 1 AS one WHERE false",
            "INSERT INTO orders VALUES (1)",
            "UPDATE orders SET id = 2 WHERE false",
            "SAVEPOINT contract",
            "RELEASE SAVEPOINT contract",
        ):
            rows = await caller.query(query)
            assert rows == [], f"{query} gives {rows!r}"

    @clause
    async def test_batch_order(self, caller: Caller) -> None:
        """The ids of a batch are in the order of its jobs."""
        ids = await caller.defer(*(new_job({"n": n}) for n in range(100)))
        await caller.commit()
        stored = caller.database.value(
            "SELECT array_agg((args->>'n')::int ORDER BY array_position(%s::bigint[], id)) FROM procrastinate_jobs",
            ids,
        )
        assert stored == list(range(100)), f"the jobs behind the ids are {stored}"

    @clause
    async def test_schedule_at(self, caller: Caller) -> None:
        """`schedule_at` keeps its instant to the microsecond."""
        app = caller.app()
        deferrer = app.configure_task("contract.task", schedule_at=_INSTANT)
        await (deferrer.defer_async() if caller.kind.is_async else _plain(deferrer.defer()))
        await caller.commit()
        stored = caller.database.value("SELECT scheduled_at FROM procrastinate_jobs")
        assert stored == _INSTANT, f"{_INSTANT} is stored as {stored}"


async def _stored_as_by_psycopg(caller: Caller, batch: list[Job]) -> None:
    database = caller.database
    database.clear_jobs()
    JobManager(database.native).batch_defer_jobs(batch)
    expected = database.jobs()
    database.clear_jobs()
    await caller.defer(*batch)
    await caller.commit()
    stored = database.jobs()
    assert len(stored) == len(expected), f"{len(expected)} jobs were sent, {len(stored)} are stored"
    for ours, theirs in zip(stored, expected, strict=True):
        for name, value in theirs.items():
            assert ours[name] == value, f"{name} is stored as {ours[name]!r}, not {value!r}"


async def _plain(value: object) -> object:
    return value
