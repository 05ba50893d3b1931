"""Peewee: a `peewee.PostgresqlDatabase` in a transaction, on psycopg 2 and 3, and its asynchronous kin on asyncpg.

Always through the database that was passed: its query hooks, and what a person overrides, see our statement too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from procrastinate_extconn.drivers import (
    Classes,
    Refusal,
    libpq_state,
    named,
    numeric,
    require_encoding,
    rows,
)
from procrastinate_extconn.hookspecs import Description, Kind, Rows, State, Value, hookimpl

_DATABASE = Classes[bool](
    {
        "peewee_async.databases.AioDatabase": Refusal(
            "async with database.aio_atomic(), database.aio_connection() as conn: ..."
        ),
        "peewee.Database": True,
        "peewee.DatabaseProxy": True,
        "peewee._atomic": Refusal("transaction.db"),
        "peewee._transaction": Refusal("transaction.db"),
        "peewee._savepoint": Refusal("savepoint.db"),
    }
)
_BEGIN = "with database.atomic(): ..."
_DIALECT = Classes[str]({"peewee.SqliteDatabase": "sqlite", "peewee.MySQLDatabase": "mysql"})
_POSTGRESQL = Classes[bool]({"peewee.PostgresqlDatabase": True})
_ASYNC = Classes[bool]({"playhouse.pwasyncio.AsyncDatabaseMixin": True})


@hookimpl
def describe_external(conn: Any) -> Description | None:
    if not _DATABASE.find(conn):
        return None
    database = _behind_proxy(conn)
    if database is None:  # a proxy that was not initialized
        return Description("peewee", "peewee", is_async=False, state="closed")
    if not _POSTGRESQL.find(database):
        return _described_by_peewee(database)
    if _ASYNC.find(database):
        begin = "async with database.atomic(): ..."
        return Description("asyncpg", "peewee", True, _async_state(database), begin)
    on_psycopg2 = isinstance(database._adapter, database.psycopg2_adapter)
    driver = "psycopg2" if on_psycopg2 else "psycopg"
    return Description(driver, "peewee", False, _state(database), _BEGIN)


def _described_by_peewee(database: Any) -> Description:
    """What Peewee itself knows of a database that is not PostgreSQL."""
    dialect = _DIALECT.find(database) or type(database).__name__
    is_async = _ASYNC.find(database) or False
    if is_async:
        return Description(dialect, "peewee", is_async, "unknown", dialect=dialect)
    state: State = "in_transaction" if database.in_transaction() else "autocommit"
    return Description(dialect, "peewee", is_async, state, _BEGIN, dialect)


@hookimpl
def execute_on_external(
    conn: Any, query: str, args: Mapping[str, Value]
) -> Rows | Awaitable[Rows] | None:
    if not _DATABASE.find(conn):
        return None
    database = _behind_proxy(conn)
    if _ASYNC.find(database):
        return _execute_async(conn, query, args)
    if _DIALECT.find(database) == "sqlite":
        query = named(query)
    elif isinstance(conn._adapter, conn.psycopg2_adapter):
        held = conn.connection()
        require_encoding(held.encoding, held.get_parameter_status("client_encoding"))
    cursor = conn.execute_sql(query, dict(args))
    return rows(cursor.description, cursor.fetchall)


async def _execute_async(database: Any, query: str, args: Mapping[str, Value]) -> Rows:
    query, names = numeric(query)
    cursor = await database.aexecute_sql(query, [args[name] for name in names])
    return rows(cursor.description, cursor.fetchall)


def _behind_proxy(conn: Any) -> Any:
    return getattr(conn, "obj", conn)


def _state(database: Any) -> State:
    if database.is_closed():
        return "autocommit" if database.autoconnect else "closed"
    held = database.connection()
    if held.closed:  # Peewee finds that with the next statement, and may connect anew.
        return "in_transaction" if database.in_transaction() else "autocommit"
    return libpq_state(held, held.info.transaction_status)


def _async_state(database: Any) -> State:
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # Peewee has a connection for each task, and this is none.
        return "unknown"
    if not database.in_transaction():
        return "autocommit"
    # Peewee would connect anew, outside the transaction that went with the connection.
    held = database._state.conn.conn
    if held is None or held.is_closed():
        return "closed"
    # Peewee does not notice a COMMIT that was sent as SQL.
    return "in_transaction" if held.is_in_transaction() else "autocommit"


@hookimpl
def external_kinds() -> Sequence[Kind]:
    from .kinds import KINDS

    return KINDS
