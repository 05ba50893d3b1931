"""A call leaves the session and the connection as they were, but for the jobs."""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from types import FunctionType
from typing import Any

from ..caller import Caller, new_job
from ..clause import clause, must

# One statement, since a first statement opens a transaction, and one text, since drivers read types differently.
_SESSION = """
    SELECT json_build_object(
        'setting', (SELECT json_agg(name || ' = ' || setting) FROM pg_settings),
        'role', json_build_array(current_user, session_user),
        'cursor', (SELECT json_agg(name) FROM pg_cursors WHERE position('pg_cursors' IN statement) = 0),
        'prepared statement', (SELECT json_agg(name) FROM pg_prepared_statements WHERE from_sql),
        'temporary table', (SELECT json_agg(relname) FROM pg_class WHERE relnamespace = pg_my_temp_schema()),
        'advisory lock', (SELECT json_agg(json_build_array(classid, objid, mode)) FROM pg_locks
                          WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        'listened channel', (SELECT json_agg(name) FROM pg_listening_channels() AS name)
    )::text
"""
_PREPARED = "SELECT count(*) FROM pg_prepared_statements"
_OTHER_TABLES = """
    SELECT json_agg(DISTINCT json_build_array(relation::regclass::text, mode)::text)::text FROM pg_locks
    WHERE locktype = 'relation' AND pid = pg_backend_pid() AND mode NOT IN ('AccessShareLock', 'RowShareLock')
"""
_WRITES = "RowExclusiveLock"
_READ = "SELECT " + ", ".join(
    f"{value} AS value_{n}"
    for n, value in enumerate(
        (
            *("true", "7", "7::bigint", "1.5::float8", "1.50::numeric", "'text'::text", "NULL"),
            *(
                """'{"a": [1]}'::jsonb""",
                """'{"a": [1]}'::json""",
                "'{a,b}'::text[]",
                r"'\x00ff'::bytea",
            ),
            *(
                "timestamptz '2031-06-01T12:00Z'",
                "timestamp '2031-06-01T12:00'",
                "date '2031-06-01'",
            ),
            "'550e8400-e29b-41d4-a716-446655440000'::uuid",
        )
    )
)


class SessionClauses:
    """Settings, objects of the session, attributes of the connection, and the number of statements."""

    @clause()
    async def test_session_stays(self, caller: Caller) -> None:
        """A call leaves settings, cursors, prepared statements, temporary tables, locks and channels as they were."""
        before = await _session(caller)
        await caller.defer()
        await caller.query("SELECT 1 AS one")
        _compare(before, await _session(caller))

    @clause()
    async def test_session_stays_on_an_idle_connection(self, caller: Caller) -> None:
        """So it is on a connection that is in no transaction yet, while that transaction lasts and after it."""
        before = await _session(caller)
        await caller.rollback()
        if caller.is_over():
            return
        await caller.defer()
        _compare(before, await _session(caller))
        await caller.error_of(caller.rollback())
        _compare(before, await _session(caller))

    @clause()
    async def test_session_stays_after_an_error(self, caller: Caller) -> None:
        """So it is after a call that failed, once the caller has rolled back."""
        before = await _session(caller)
        await caller.execute("SAVEPOINT contract")
        await caller.error_of(caller.query("SELECT 1 / %(zero)s::bigint AS quotient", zero=0))
        await caller.execute("ROLLBACK TO SAVEPOINT contract")
        await caller.execute("RELEASE SAVEPOINT contract")
        _compare(before, await _session(caller))

    @clause()
    async def test_settings_of_the_callers(self, caller: Caller) -> None:
        """What the caller has set, begun and locked on the session is still there after a call."""
        await caller.execute("SET LOCAL work_mem = '7MB'")
        await caller.execute("SET application_name = 'the caller''s'")
        await caller.execute("SET search_path = public, pg_temp")
        await caller.execute("CREATE TEMPORARY TABLE of_the_caller (n int)")
        await caller.execute("DECLARE of_the_caller CURSOR FOR SELECT 1")
        await caller.execute("PREPARE of_the_caller AS SELECT 1")
        await caller.execute("SELECT 1 FROM pg_advisory_lock(7)")
        before = await _session(caller)
        await caller.defer()
        _compare(before, await _session(caller))
        await caller.rollback()
        await caller.error_of(caller.execute("SELECT 1 FROM pg_advisory_unlock_all()"))

    @clause()
    async def test_settings_of_earlier_transactions(self, caller: Caller) -> None:
        """So is what the caller has set and listened to in an earlier transaction."""
        await caller.execute("SET application_name = 'the caller''s'")
        await caller.execute("LISTEN of_the_caller")
        await caller.commit()
        if caller.is_over():
            return
        before = await _session(caller)
        await caller.defer()
        await caller.error_of(caller.commit())
        _compare(before, await _session(caller))

    @clause()
    async def test_prepared_statements_do_not_pile_up(self, caller: Caller) -> None:
        """The same call again leaves no more prepared statements than the driver keeps for it."""
        counts: list[int] = []
        for _ in range(3):
            for _ in range(8):  # psycopg prepares what was sent five times
                await caller.defer()
            counts.append(await caller.value(_PREPARED))
        must(
            counts[1] == counts[2],
            f"after 8, 16 and 24 calls, the session has {counts} prepared statements",
        )

    @clause()
    async def test_locks_no_tables(self, caller: Caller) -> None:
        """A call locks no table in more than the mode of an INSERT."""
        await caller.defer()
        found = [json.loads(one) for one in json.loads(await caller.value(_OTHER_TABLES) or "[]")]
        more = [f"{table} in {mode}" for table, mode in found if mode != _WRITES]
        must(not more, f"it locks {', '.join(more)}")

    @clause()
    async def test_attributes_stay(self, caller: Caller) -> None:
        """A call changes no public attribute of the connection, such as a row factory or an isolation level."""
        earlier = []
        for _ in range(2):
            await caller.execute("SELECT 1")
            earlier.append(attributes(caller.conn))
        await caller.defer()
        await caller.query("SELECT 1 AS one")
        after = attributes(caller.conn)
        changed = [
            f"{name} from {value!r} to {after.get(name)!r}"
            for name, value in earlier[1].items()
            if earlier[0].get(name) == value and after.get(name) != value
        ]
        must(not changed, f"it changes {', '.join(changed)}")

    @clause()
    async def test_keeps_no_connection(self, caller: Caller) -> None:
        """Calls leave no reference to the connection behind."""
        counts: list[int] = []
        for _ in range(3):
            for _ in range(4):
                await caller.defer()
            gc.collect()
            counts.append(sys.getrefcount(caller.conn))
        must(
            counts[2] - counts[1] < 4,
            f"after 4, 8 and 12 calls, there are {counts} references to the connection",
        )

    @clause()
    async def test_reads_stay(self, caller: Caller) -> None:
        """A call changes nothing about the types in which the driver gives its owner values."""
        before = await _read(caller)
        first = _first_reads.setdefault(caller.kind.id, before)
        await caller.defer()
        after = await _read(caller)
        must(after == before, f"the owner reads {after} after a call, where it was {before}")
        must(first == before, f"the owner reads {before}, where it was {first}")

    @clause(tapped=True)
    async def test_one_statement(self, caller: Caller) -> None:
        """Each call is one statement."""
        wiretap = caller.wiretap
        assert wiretap is not None
        read = "SELECT id FROM procrastinate_jobs WHERE id = %(id)s::bigint"
        await caller.execute("SELECT 1")
        for n in range(2):  # at first, a driver may ask for types
            calls: dict[str, Callable[[], Awaitable[object]]] = {
                "one job": partial(caller.defer, new_job({"n": n})),
                "a batch of 150": partial(caller.defer, *(new_job({"n": n}) for _ in range(150))),
                "a query with rows": partial(caller.query, read, id=1),
            }
            for name, call in calls.items():
                wiretap.completed()
                await call()
                tags = wiretap.completed()
                must(
                    n == 0 or len(tags) == 1,
                    f"{name} takes {len(tags)} statements: {', '.join(tags)}",
                )


_first_reads: dict[str, str] = {}


async def _session(caller: Caller) -> dict[str, Any]:
    await caller.execute(
        "DO 'BEGIN END'"
    )  # the first function in PL/pgSQL brings settings of its own
    found: dict[str, Any] = json.loads(await caller.value(_SESSION))
    return found


async def _read(caller: Caller) -> str:
    [row] = await caller.execute(_READ)
    return repr([bytes(value) if isinstance(value, memoryview) else value for value in row])


def _compare(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, found in before.items():
        was, now = Counter(_texts(found)), Counter(_texts(after[name]))
        more, less = sorted((now - was).elements()), sorted((was - now).elements())
        must(
            not (more or less),
            f"the plugin leaves another {name}: {', '.join(more) or 'none'}"
            + (f", where it was {', '.join(less)}" if less else ""),
        )


def _texts(values: list[Any] | None) -> list[str]:
    return [str(value) for value in values or ()]


def attributes(conn: Any) -> dict[str, Any]:
    """The public attributes that are plain values, classes or functions."""
    found: dict[str, Any] = {}
    for name in dir(conn):
        if name.startswith("_"):
            continue
        try:
            value = getattr(conn, name)
        except Exception:  # noqa: BLE001, S112 - it is no attribute in this state
            continue
        if value is None or isinstance(value, (bool, int, float, str, type, FunctionType)):
            found[name] = value
    return found
