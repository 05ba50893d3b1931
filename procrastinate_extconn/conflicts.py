"""A taken queueing lock need be no error, and a failed defer need not cost the caller's transaction.

No savepoint of ours is ever on the caller's connection: rolling back to one would undo what another task or thread has
sent on that connection meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import threading
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeAlias

from procrastinate.exceptions import ConnectorException

from . import wire
from .hookspecs import Rows, State
from .options import External

Send: TypeAlias = "Callable[[str, dict[str, Any]], Awaitable[Rows]]"


class ServerRefusal(Exception):
    """An error that the server caught inside a statement of ours, with what it said."""

    def __init__(self, said: dict[str, str]) -> None:
        super().__init__(said["message"])
        self.sqlstate = said["sqlstate"]
        self.message = said["message"]
        self.detail = said["detail"]
        self.constraint_name = said["constraint"]


async def execute(
    send: Send,
    query: str,
    arguments: dict[str, Any],
    options: External,
    state: State,
    dumps: wire.Dumps | None,
) -> Rows:
    """Defer jobs as *options* say.

    :param send: runs a statement on the connection.
    :param state: the connection's state before it. Outside a transaction there is nothing to keep.
    :param dumps: makes JSON of a job's arguments.
    :raises ServerRefusal: if the server refuses the jobs, and the transaction was kept.
    """
    parameter = wire.prepare(query).jobs
    assert parameter is not None
    keep = options.savepoint and state != "autocommit"
    if keep and state == "unknown":
        keep = await _is_in_transaction(send)
    run = functools.partial(_run_caught if keep else _run, send)
    if options.on_conflict == "raise":
        return await run(query, parameter, wire.encode_jobs(arguments[parameter], dumps))
    return await _find_or_defer(run, query, parameter, arguments[parameter], dumps)


async def _find_or_defer(
    run: Callable[[str, str, str], Awaitable[Rows]],
    query: str,
    parameter: str,
    jobs: list[Any],
    dumps: wire.Dumps | None,
) -> Rows:
    # A job without a lock is known by its place.
    keys = [
        index if job.queueing_lock is None else wire.lock_text(job.queueing_lock)
        for index, job in enumerate(jobs)
    ]
    first = dict(zip(reversed(keys), reversed(jobs), strict=True))
    unique = {key: first[key] for key in keys}
    rows = await run(_looking(query), parameter, wire.encode_jobs([*unique.values()], dumps))
    ids = {row["queueing_lock"]: row["id"] for row in rows if row["queueing_lock"] is not None}
    new = iter(row["id"] for row in rows if row["queueing_lock"] is None)
    ids |= {key: next(new) for key in unique if key not in ids}
    return [{"id": ids[key]} for key in keys]


# The jobs that are found are locked until the transaction ends, so that none runs before the caller's rows are visible.
# They come with their queueing lock, new jobs without.
_LOOKING = """
WITH jobs AS (
    SELECT job, pg_catalog.row_number() OVER () AS number FROM (SELECT RECORDS AS job) AS sent
), holders AS MATERIALIZED (
    SELECT id, queueing_lock FROM procrastinate_jobs
    WHERE status = 'todo' AND queueing_lock = ANY(ARRAY(SELECT (job).queueing_lock FROM jobs))
    FOR SHARE
), new AS (
    DEFER
)
SELECT CAST(queueing_lock AS pg_catalog.text) AS queueing_lock, id FROM holders
UNION ALL
SELECT NULL, id FROM new"""
_FREE = (
    "ARRAY(SELECT job FROM jobs WHERE NOT EXISTS (SELECT FROM holders "
    "WHERE holders.queueing_lock = (jobs.job).queueing_lock) ORDER BY number)"
)


@functools.lru_cache(maxsize=16)
def _looking(query: str) -> str:
    """*query* for the jobs whose queueing locks are free, and the jobs that hold the others."""
    records, array = wire.records(query)
    deferring = wire.prepare(query).query.strip().rstrip(";").replace(array, _FREE)
    return _LOOKING.replace("RECORDS", records).replace("DEFER", deferring)


async def _run(send: Send, query: str, parameter: str, jobs: str) -> Rows:
    return await send(wire.prepare(query).query, {parameter: jobs})


# An exception block of PL/pgSQL is a savepoint inside one statement, which nobody else can queue in. It takes no
# parameter and returns no row, so both go through a setting that is local to the transaction.

_in_use: set[int] = set()
_using = threading.Lock()


@contextlib.contextmanager
def _setting() -> Generator[str]:
    """The name of a setting that no other call uses now. Few names serve all: the server keeps each one."""
    with _using:
        number = next(number for number in itertools.count() if number not in _in_use)
        _in_use.add(number)
    try:
        yield f"procrastinate_extconn.call_{number}"
    finally:
        with _using:
            _in_use.remove(number)


_CATCHING = """
DO LANGUAGE plpgsql $extconn$
DECLARE
    code pg_catalog.text;
    said pg_catalog.text;
    more pg_catalog.text;
    name pg_catalog.text;
BEGIN
    PERFORM pg_catalog.set_config('SETTING', (
        SELECT CAST(pg_catalog.json_build_object(
            'rows', coalesce(pg_catalog.json_agg(deferred), '[]')
        ) AS pg_catalog.text)
        FROM (QUERY) AS deferred
    ), true);
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS
        code = RETURNED_SQLSTATE, said = MESSAGE_TEXT, more = PG_EXCEPTION_DETAIL, name = CONSTRAINT_NAME;
    PERFORM pg_catalog.set_config('SETTING', CAST(pg_catalog.json_build_object(
        'sqlstate', code, 'message', said, 'detail', more, 'constraint', name
    ) AS pg_catalog.text), true);
END $extconn$"""
_PUT = "SELECT pg_catalog.set_config('SETTING', CAST(%(jobs)s AS pg_catalog.text), true) AS jobs"
_GET = "SELECT pg_catalog.current_setting('SETTING') AS said"


@functools.lru_cache(maxsize=64)
def _catching(query: str, parameter: str) -> str:
    """*query* inside an exception block, its parameter and its rows in a setting."""
    query = wire.prepare(query).query.strip().rstrip(";")
    put = query.replace(f"%({parameter})s", "pg_catalog.current_setting('SETTING')")
    return _CATCHING.replace("QUERY", put)


async def _run_caught(send: Send, query: str, parameter: str, jobs: str) -> Rows:
    with _setting() as setting:
        await send(_PUT.replace("SETTING", setting), {"jobs": jobs})
        await send(_catching(query, parameter).replace("SETTING", setting), {})
        [row] = await send(_GET.replace("SETTING", setting), {})
    said = json.loads(row["said"])
    if "rows" not in said:
        raise ServerRefusal(said)
    rows: Rows = said["rows"]
    return rows


async def _is_in_transaction(send: Send) -> bool:
    """Ask the server, where nobody else could say. The savepoint is released at once, so it undoes nothing."""
    try:
        await send("SAVEPOINT procrastinate_extconn", {})
    except ConnectorException:
        return False
    await send("RELEASE SAVEPOINT procrastinate_extconn", {})
    return True
