"""A failed statement leaves the caller's transaction usable, and a taken queueing lock can be no failure at all.

No savepoint is sent: rolling back to one would undo what another task or thread has sent on the connection meanwhile.
The server undoes the statement alone, in a block of PL/pgSQL. Such a block takes no parameters and returns no rows. A
setting that ends with the transaction carries the call to the block, and the answer back.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

from procrastinate.exceptions import UniqueViolation
from procrastinate.manager import QUEUEING_LOCK_CONSTRAINT

from . import wire
from .hookspecs import Rows, State
from .options import OnConflict
from .queries import writes

Send: TypeAlias = "Callable[[str, dict[str, Any]], Awaitable[Rows]]"

_ATTEMPTS = 10
"""How often to insert again where the job that held the lock has gone meanwhile."""

_PUT = "SELECT pg_catalog.set_config('{setting}', %(call)s, true) AS put"
_GET = "SELECT pg_catalog.current_setting('{setting}', true) AS answer"
# The jobs that hold one of the locks are locked until the caller's transaction ends. The locks travel as one text: in
# an array, some drivers send a lock that reads null as NULL.
_LOOK_AND_PUT = (
    f"{_PUT}, pg_catalog.current_setting('transaction_isolation') AS isolation, "  # noqa: S608
    "CAST((SELECT pg_catalog.json_object_agg(queueing_lock, id) FROM ("
    "SELECT queueing_lock, id FROM procrastinate_jobs WHERE status = 'todo' AND queueing_lock = "
    "ANY(ARRAY(SELECT pg_catalog.json_array_elements_text("
    "CAST(CAST(%(locks)s AS pg_catalog.text) AS pg_catalog.json)))) FOR SHARE"
    ") AS waiting) AS pg_catalog.text) AS waiting"
)
_CALL = """DO $extconn$
DECLARE
    call pg_catalog.json = CAST(NULLIF(pg_catalog.current_setting('{setting}', true), '') AS pg_catalog.json);
    statement pg_catalog.text;
    found pg_catalog.text[];
    one record;
    sqlstate_ pg_catalog.text; message pg_catalog.text;
    detail pg_catalog.text; constraint_ pg_catalog.text;
BEGIN
    IF call IS NULL THEN
        RETURN;
    END IF;
    BEGIN
        statement = pg_catalog.format(
            call->>'query', VARIADIC ARRAY(SELECT pg_catalog.json_array_elements_text(call->'values')));
        IF CAST(call->>'has_rows' AS pg_catalog.bool) THEN
            FOR one IN EXECUTE statement LOOP
                found = pg_catalog.array_append(found, CAST(pg_catalog.to_json(one) AS pg_catalog.text));
            END LOOP;
        ELSE
            EXECUTE statement;
        END IF;
        PERFORM pg_catalog.set_config(
            '{setting}', '[[' || coalesce(pg_catalog.array_to_string(found, ','), '') || ']]', true);
    EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS sqlstate_ = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
            constraint_ = CONSTRAINT_NAME;
        PERFORM pg_catalog.set_config('{setting}', CAST(
            pg_catalog.json_build_array(sqlstate_, message, detail, constraint_) AS pg_catalog.text), true);
    END;
END
$extconn$"""

_numbers = itertools.count()
_free: list[int] = []


class CaughtError(Exception):
    """The server's error, as the block caught it. Its text has no value that was sent."""

    def __init__(self, sqlstate: str, message: str, detail: str, constraint_name: str) -> None:
        super().__init__(f"SQLSTATE {sqlstate}")
        self.sqlstate = sqlstate
        self.message = message
        self.detail = detail
        self.constraint_name = constraint_name


class Connection(NamedTuple):
    """What is needed of the connector."""

    send: Send
    """Runs a statement on the connection."""
    encode: Callable[[str, dict[str, Any]], tuple[str, dict[str, Any]]]
    """Makes plain values of a query's arguments."""
    translated: Callable[[Exception, dict[str, Any]], Exception]
    """Procrastinate's error for one that was caught."""
    state: State
    """The state before the call. Outside a transaction nothing needs to be caught."""


async def execute(
    conn: Connection, query: str, arguments: dict[str, Any], on_conflict: OnConflict
) -> Rows:
    """Run one query so that its failure leaves the transaction usable."""
    jobs = wire.prepare(query).jobs
    if on_conflict == "existing" and jobs is not None:
        return await _defer_or_find(conn, query, arguments, jobs)
    if conn.state == "autocommit" or not writes(query):
        return await conn.send(query, arguments)
    with _setting() as setting:
        await conn.send(_PUT.format(setting=setting), {"call": _call(conn, query, arguments)})
        answer = await _answer(conn, setting)
    return await _rows(conn, query, arguments, answer)


@contextmanager
def _setting() -> Generator[str]:
    """A setting of this call's own. The names are few, so that a driver prepares the statements once."""
    try:
        number = _free.pop()
    except IndexError:
        number = next(_numbers)
    yield f"procrastinate_extconn.call_{number}"
    # Not after an error or a cancellation: a statement may still be on its way.
    _free.append(number)


def _call(conn: Connection, query: str, arguments: dict[str, Any]) -> str:
    query, args = conn.encode(query, arguments)
    names = list(args)
    query = re.sub(r"%\((\w+)\)s", lambda found: f"%{names.index(found[1]) + 1}$L", query)
    has_rows = query.lstrip()[:6].upper() == "SELECT" or "RETURNING" in query.upper()
    call = {"query": query, "values": list(args.values()), "has_rows": has_rows}
    # In ASCII, so that a text which the database cannot store is no error before the block.
    return json.dumps(call, default=str)


async def _answer(conn: Connection, setting: str) -> list[Any] | None:
    await conn.send(_CALL.format(setting=setting), {})
    rows = await conn.send(_GET.format(setting=setting), {})
    answer = rows[0]["answer"]
    return json.loads(answer) if answer else None


async def _rows(
    conn: Connection, query: str, arguments: dict[str, Any], answer: list[Any] | None
) -> Rows:
    if answer is None:
        # The state was unknown, and the setting is gone: each statement commits by itself.
        return await conn.send(query, arguments)
    if len(answer) == 1:
        rows: Rows = answer[0]
        return rows
    error = conn.translated(CaughtError(*answer), arguments)
    try:
        raise error
    finally:
        del error


async def _defer_or_find(
    conn: Connection, query: str, arguments: dict[str, Any], parameter: str
) -> Rows:
    jobs = arguments[parameter]
    # A job without a lock is known by its place.
    keys = [
        index if (lock := job.queueing_lock) is None else wire.lock_text(lock)
        for index, job in enumerate(jobs)
    ]
    ids: dict[int | str, int] = {}
    attempts = _ATTEMPTS
    while new := _first_of_each(keys, jobs, ids):
        sent = {**arguments, parameter: list(new.values())}
        with _setting() as setting:
            look = {
                "call": _call(conn, query, sent),
                "locks": json.dumps(
                    [key for key in new if isinstance(key, str)], ensure_ascii=False
                ),
            }
            [seen] = await conn.send(_LOOK_AND_PUT.format(setting=setting), look)
            if seen["waiting"]:
                ids.update(json.loads(seen["waiting"]))
                continue
            answer = None if conn.state == "autocommit" else await _answer(conn, setting)
        try:
            rows = await _rows(conn, query, sent, answer)
        except UniqueViolation as exc:
            attempts -= 1
            is_lock = exc.constraint_name == QUEUEING_LOCK_CONSTRAINT
            # Under these, no later look would find the job that is in the way.
            is_old = seen["isolation"] in ("repeatable read", "serializable")
            if is_old or not is_lock or not attempts:
                raise
        else:
            ids.update(zip(new, (row["id"] for row in rows), strict=True))
    return [{"id": ids[key]} for key in keys]


def _first_of_each(
    keys: list[int | str], jobs: list[Any], known: Mapping[int | str, int]
) -> dict[int | str, Any]:
    new: dict[int | str, Any] = {}
    for key, job in zip(keys, jobs, strict=True):
        if key not in known:
            new.setdefault(key, job)
    return new
