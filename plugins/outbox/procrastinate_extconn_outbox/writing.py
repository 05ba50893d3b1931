"""`Outbox`, and the plugin that writes the jobs of a call as one row, through the plugin of the connection inside."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from procrastinate_extconn import describe
from procrastinate_extconn.diagnosis import read
from procrastinate_extconn.drivers import describe_held, execute_on_held
from procrastinate_extconn.exceptions import ExternalConnectionError
from procrastinate_extconn.hookspecs import OUTBOX as DIALECT
from procrastinate_extconn.hookspecs import Description, Rows, Value, hookimpl
from procrastinate_extconn.options import External
from procrastinate_extconn.queries import FOR_A_TEST
from procrastinate_extconn.wire import DEFERS

from . import block, looking
from .absent import NO_TABLE, is_missing, missing
from .names import CHANNEL, OUTBOX, split
from .payload import new_id, stored

_INSERT = "INSERT INTO {table} (id, jobs) VALUES (%(id)s, %(jobs)s)"
# The statement itself wakes the relays: a trigger would be missing where a migration tool made the table.
_NOTIFY = f" RETURNING CAST(pg_catalog.pg_notify('{CHANNEL}', '') AS pg_catalog.text) AS notified"


class Outbox:
    """A connection to another database than Procrastinate's, accepted wherever a connection is.

    Deferring on it writes one row into your database, in your transaction. A relay forwards the row to Procrastinate's
    database later. ``defer()`` returns -1, since the job has no id yet. Only deferring works.

    :param conn: any connection that a plugin takes, to any database: SQLAlchemy's, Django's, a driver's. It stays
        yours: it is never committed, rolled back or closed.
    :param table: the outbox's name, or ``schema.name``.
    :raises TypeError: for what `procrastinate_extconn.external` returned: write ``external(Outbox(conn), ...)``.
    :raises ValueError: for a name that would need quotes.
    """

    def __init__(self, conn: object, *, table: str = OUTBOX) -> None:
        if isinstance(conn, (External, Outbox)):
            raise TypeError(
                f"Outbox() takes a connection, got {type(conn).__name__}: options go outside, as in "
                "external(Outbox(conn), savepoint=True)"
            )
        split(table)
        self.conn: object = conn
        self.table: str = table


@hookimpl
def describe_external(conn: Any) -> Description | None:
    if not isinstance(conn, Outbox):
        return None
    held = describe_held(conn.conn)
    if held is None:
        describe(
            conn.conn
        )  # Refuses what no plugin takes. Of what is left, no plugin tells anything.
        return None
    return held._replace(plugin="outbox", dialect=DIALECT)


@hookimpl
def execute_on_external(
    conn: Any, query: str, args: Mapping[str, Value]
) -> Rows | Awaitable[Rows] | None:
    if not isinstance(conn, Outbox):
        return None
    held = describe_held(conn.conn)
    is_postgresql = held is not None and held.dialect == "postgresql"
    insert = _INSERT.format(table=conn.table) + (_NOTIFY if is_postgresql else "")
    if DEFERS in query and len(args) == 1:
        jobs, count = stored(str(*args.values()))
        return _run(conn, insert, {"id": new_id(), "jobs": jobs}, lambda _: [{"id": -1}] * count)
    if block.belongs(query, args):
        return (
            _run(conn, query, block.call(args, insert)) if is_postgresql else list(block.LEFT_OUT)
        )
    if query.endswith(FOR_A_TEST):
        return _run(conn, looking.SELECT.format(table=conn.table), {}, looking.jobs)
    raise _refusal(args)


def _refusal(args: Mapping[str, Value]) -> ExternalConnectionError:
    if "locks" in args:
        return ExternalConnectionError(
            'external(Outbox(conn), on_conflict="existing") cannot work: only Procrastinate\'s database knows which '
            "job waits under a queueing lock. Leave on_conflict out: where the lock is taken, the relay drops the job."
        )
    return ExternalConnectionError(
        "an Outbox only takes jobs that are deferred: the jobs themselves, their status and their end are in "
        "Procrastinate's database. Make this call without a connection, or on one to that database. In place of "
        "complete(), see procrastinate_extconn_outbox.once()."
    )


def _run(
    outbox: Outbox,
    query: str,
    args: Mapping[str, Value],
    answer: Callable[[Rows], Rows] = lambda rows: rows,
) -> Rows | Awaitable[Rows]:
    """Run *query* on the connection inside, and give what *answer* makes of its rows."""
    try:
        result = execute_on_held(outbox.conn, query, args)
    except Exception as exc:
        if not is_missing(exc, outbox.table):
            raise
        cause = read(exc)[0]
    else:
        if not inspect.isawaitable(result):
            return _answered(result, outbox, answer)
        return _awaited(result, outbox, answer)
    raise missing(outbox.table, outbox.conn) from cause


async def _awaited(result: Awaitable[Rows], outbox: Outbox, answer: Callable[[Rows], Rows]) -> Rows:
    try:
        rows = await result
    except Exception as exc:
        if not is_missing(exc, outbox.table):
            raise
        cause = read(exc)[0]
    else:
        return _answered(rows, outbox, answer)
    raise missing(outbox.table, outbox.conn) from cause


def _answered(rows: Any, outbox: Outbox, answer: Callable[[Rows], Rows]) -> Rows:
    if block.sqlstate(rows) in NO_TABLE:
        raise missing(outbox.table, outbox.conn)
    return answer(rows)
