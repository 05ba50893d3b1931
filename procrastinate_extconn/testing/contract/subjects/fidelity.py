"""What is stored is what was sent, and what comes back is what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job
from procrastinate.manager import JobManager

from ..caller import Caller, new_job, what
from ..clause import Broken, clause, must
from ..examples import INSTANT, INSTANTS, LONG, TEXTS, difficult_jobs, difficult_values

_VALUES = """
    SELECT %(boolean)s::boolean AS boolean, %(bigint)s::bigint AS bigint, %(float)s::float8 AS float,
           %(text)s::text AS text, %(timestamptz)s::timestamptz AS timestamptz,
           %(text)s::text AS again, '100%%' AS percent, ':name $1 ? {} ;  -- /* %%s' AS literal
"""
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
_MANY = 2500


class FidelityClauses:
    """Payloads, locks, values, order, instants."""

    @clause()
    async def test_jobs_are_stored_as_sent(self, caller: Caller) -> None:
        """Each job is stored as Procrastinate's own psycopg connector stores it."""
        await _stored_as_by_psycopg(caller, difficult_jobs())

    @clause()
    async def test_single_jobs_are_stored_as_sent(self, caller: Caller) -> None:
        """So are jobs that are deferred one by one."""
        for text in TEXTS:
            await caller.defer(new_job({"text": text}, lock=text, queueing_lock=text))
        await caller.commit()
        stored = caller.database.jobs()
        must(len(stored) == len(TEXTS), f"{len(TEXTS)} jobs were sent, {len(stored)} are stored")
        for job, text in zip(stored, TEXTS, strict=True):
            for name in ("lock", "queueing_lock"):
                must(job[name] == text, f"{name} is stored as {job[name]!r}, not {text!r}")

    @clause()
    async def test_hostile_settings(self, caller: Caller) -> None:
        """So are jobs on a session whose settings change how text and dates are read."""
        for name, setting in _HOSTILE_SETTINGS.items():
            await caller.execute(f"SET {name} = '{setting}'")
        await _stored_as_by_psycopg(caller, difficult_jobs())

    @clause()
    async def test_values_come_back(self, caller: Caller) -> None:
        """Each type of value that a plugin is asked to bind comes back equal, and literals stay as they are."""
        for sent in difficult_values():
            rows = await caller.query(_VALUES, **sent)
            must(len(rows) == 1, f"a query for one row gives {len(rows)}")
            expected = {
                **sent,
                "again": sent["text"],
                "percent": "100%",
                "literal": ":name $1 ? {} ;  -- /* %s",
            }
            must(list(rows[0]) == list(expected), f"the columns are {list(rows[0])}")
            for name, value in expected.items():
                came_back(name, rows[0][name], value)

    @clause()
    async def test_percent_signs(self, caller: Caller) -> None:
        """A doubled percent sign is one, in a text and outside of it, with arguments and without."""
        query = "SELECT '%%s 100%%' AS text, {} %% 5 AS rest"
        expected = [{"text": "%s 100%", "rest": 2}]
        rows = await caller.query(query.format("17"))
        must(rows == expected, f"without arguments it gives {rows!r}, not {expected!r}")
        expected = [{"text": "%s 100%", "rest": 3}]
        rows = await caller.query(query.format("%(n)s::bigint"), n=18)
        must(rows == expected, f"with arguments it gives {rows!r}, not {expected!r}")

    @clause()
    async def test_placeholders(self, caller: Caller) -> None:
        """Each placeholder gets its own value, with any number, names, order and repetitions of them."""
        names = ["a", "ab", "a_b", "a1", "a11", "abc", "b", "A", "n", "nn", "lock", "queueing_lock"]
        sent = {name: 10 + n for n, name in enumerate(reversed(names))}
        columns = [f'%({name})s::bigint AS "{name}"' for name in names]
        columns += [f'%({name})s::bigint + 100 AS "{name}_again"' for name in reversed(names)]
        rows = await caller.query("SELECT " + ",\n  ".join(columns), **sent)
        expected = {name: sent[name] for name in names}
        expected |= {f"{name}_again": sent[name] + 100 for name in reversed(names)}
        must(rows == [expected], f"it gives {rows!r}, not {[expected]!r}")

    @clause()
    async def test_half_characters(self, caller: Caller) -> None:
        """A text with half a surrogate pair, which PostgreSQL cannot store, is refused and not changed."""
        error = await caller.error_of(caller.query("SELECT %(text)s::text", text="half \ud83e."))
        must(
            isinstance(error, ConnectorException),
            f"{what(error)} instead of ConnectorException",
            error,
        )

    @clause()
    async def test_other_time_zone(self, caller: Caller) -> None:
        """In a session whose time zone is not UTC, instants are stored and come back as they are, with a time zone."""
        await caller.execute("SET TimeZone = 'America/St_Johns'")
        for n, instant in enumerate(INSTANTS):
            [row] = await caller.query("SELECT %(at)s::timestamptz AS at", at=instant)
            came_back("an instant", row["at"], instant)
            [job_id] = await caller.defer(new_job({"n": n}, scheduled_at=instant))
            [row] = await caller.query(
                "SELECT scheduled_at FROM procrastinate_jobs WHERE id = %(id)s::bigint", id=job_id
            )
            came_back("scheduled_at", row["scheduled_at"], instant)
        await caller.commit()
        stored = [job["scheduled_at"] for job in caller.database.jobs()]
        expected = [instant.astimezone(timezone.utc).replace(tzinfo=None) for instant in INSTANTS]
        must(stored == expected, f"the instants are stored as {stored}, not {expected}")

    @clause()
    async def test_rows_are_dicts(self, caller: Caller) -> None:
        """Rows are dicts in the query's order, and a statement without rows gives ``[]``."""
        rows = await caller.query("SELECT n, n::text AS t FROM generate_series(1, 3) AS n")
        must(
            rows == [{"n": n, "t": str(n)} for n in (1, 2, 3)],
            f"the rows are {rows!r}",
        )
        for query in (
            "SELECT 1 AS one WHERE false",
            "INSERT INTO orders VALUES (1)",
            "UPDATE orders SET id = 2 WHERE false",
            "SAVEPOINT contract",
            "RELEASE SAVEPOINT contract",
        ):
            rows = await caller.query(query)
            must(rows == [], f"{query} gives {rows!r}")

    @clause()
    async def test_all_rows(self, caller: Caller) -> None:
        """Results of thousands of rows, of long texts and of many columns are complete, under their names."""
        rows = await caller.query(
            "SELECT n, mod(n, 7) AS rest FROM generate_series(1, %(many)s::bigint) AS n", many=_MANY
        )
        must(len(rows) == _MANY, f"of {_MANY} rows, {len(rows)} arrived")
        must(rows == [{"n": n, "rest": n % 7} for n in range(1, _MANY + 1)], "rows are mixed up")
        [row] = await caller.query("SELECT repeat('x', 2000000) || 'end' AS text")
        must(
            row["text"] == "x" * 2_000_000 + "end",
            f"of 2,000,003 characters, {len(row['text'])} are",
        )
        names = ["UPPER", "ünï", "n" * 63, *(f"c{n}" for n in range(120))]
        columns = ", ".join(f'{n} AS "{name}"' for n, name in enumerate(names))
        rows = await caller.query(f"SELECT {columns}")
        expected = {name: n for n, name in enumerate(names)}
        must(rows == [expected], f"the columns are {list(rows[0])}, not {names}")

    @clause()
    async def test_rows_are_the_callers(self, caller: Caller) -> None:
        """Rows that were returned stay as they are when the next query runs, and may be changed by their owner."""
        query = "SELECT n FROM generate_series(1, %(n)s::bigint) AS n"
        first = await caller.query(query, n=2)
        second = await caller.query(query, n=3)
        must(first == [{"n": 1}, {"n": 2}], f"after another query, the rows are {first!r}")
        second.clear()
        third = await caller.query(query, n=3)
        must(len(third) == 3, "rows that their owner changed come back changed")

    @clause()
    async def test_batch_order(self, caller: Caller) -> None:
        """The ids of a batch are in the order of its jobs."""
        ids = await caller.defer(*(new_job({"n": n}) for n in range(250)))
        await caller.commit()
        stored = caller.database.value(
            "SELECT array_agg((args->>'n')::int ORDER BY array_position(%s::bigint[], id)) FROM procrastinate_jobs",
            ids,
        )
        must(stored == list(range(250)), f"the jobs behind the ids are {stored}")

    @clause()
    async def test_large_batch(self, caller: Caller) -> None:
        """A batch of thousands of jobs, and one of megabytes, are stored to the last job."""
        ids = await caller.defer(*(new_job({"n": n}) for n in range(_MANY)))
        must(len(set(ids)) == _MANY, f"of {_MANY} jobs, {len(set(ids))} have an id")
        await caller.defer(*(new_job({"n": n, "long": LONG}) for n in range(20)))
        await caller.commit()
        stored = caller.database.value("SELECT count(*) FROM procrastinate_jobs")
        must(stored == _MANY + 20, f"of {_MANY + 20} jobs, {stored} are stored")
        lengths = caller.database.value(
            "SELECT array_agg(DISTINCT length(args->>'long')) FROM procrastinate_jobs WHERE args ? 'long'"
        )
        must(lengths == [len(LONG)], f"texts of {len(LONG)} characters are stored as {lengths}")

    @clause()
    async def test_schedule_at(self, caller: Caller) -> None:
        """`schedule_at` keeps its instant to the microsecond."""
        app = caller.app()
        deferrer = app.configure_task("contract.task", schedule_at=INSTANT)
        await (deferrer.defer_async() if caller.kind.is_async else _plain(deferrer.defer()))
        await caller.commit()
        stored = caller.database.value("SELECT scheduled_at FROM procrastinate_jobs")
        must(stored == INSTANT, f"{INSTANT} is stored as {stored}")


def came_back(name: str, value: Any, sent: Any) -> None:
    """Break the clause unless *value* is what was *sent*."""
    if isinstance(sent, datetime) and isinstance(value, datetime):
        must(value.tzinfo is not None, f"{name} came back without a time zone: {value}")
        # In the hour that a clock shows twice, Python finds no time equal to one of another zone.
        same = value.astimezone(timezone.utc) == sent.astimezone(timezone.utc)
        must(same, f"{name} came back as {value}, not {sent}")
    # -0.0 equals 0.0, and True equals 1.
    elif (type(value), repr(value)) != (type(sent), repr(sent)):
        raise Broken(f"{name} came back as {_short(value)}, not {_short(sent)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 500 else f"{text[:200]}... ({len(text)} characters)"


async def _stored_as_by_psycopg(caller: Caller, batch: Sequence[Job]) -> None:
    database = caller.database
    JobManager(database.native).batch_defer_jobs(list(batch))
    expected = database.jobs()
    database.clear_jobs()
    await caller.defer(*batch)
    await caller.commit()
    stored = database.jobs()
    must(
        len(stored) == len(expected),
        f"{len(expected)} jobs were sent, {len(stored)} are stored",
    )
    for ours, theirs in zip(stored, expected, strict=True):
        for name, value in theirs.items():
            must(
                ours[name] == value,
                f"{name} is stored as {_short(ours[name])}, not {_short(value)}",
            )


async def _plain(value: object) -> object:
    return value
