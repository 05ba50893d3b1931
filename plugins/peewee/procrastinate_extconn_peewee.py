"""Peewee: a `peewee.PostgresqlDatabase` in a transaction, on psycopg 2 and 3, and its asynchronous kin on asyncpg.

Always through the database that was passed: its query hooks, and what a person overrides, see our statement too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any

from procrastinate_extconn.drivers import (
    Classes,
    Refusal,
    libpq_state,
    numeric,
    require_postgresql,
    rows,
)
from procrastinate_extconn.hookspecs import Description, Rows, State, Value, hookimpl

_DATABASE = Classes[bool](
    {
        "peewee.Database": True,
        "peewee.DatabaseProxy": True,
        "peewee._atomic": Refusal("transaction.db"),
        "peewee._transaction": Refusal("transaction.db"),
        "peewee._savepoint": Refusal("savepoint.db"),
    }
)
_POSTGRESQL = Classes[bool]({"peewee.PostgresqlDatabase": True})
_ASYNC = Classes[bool]({"playhouse.pwasyncio.AsyncDatabaseMixin": True})


@hookimpl
def describe_external(conn: Any) -> Description | None:
    if not _DATABASE.find(conn):
        return None
    database = _behind_proxy(conn)
    dialect = "postgresql" if _POSTGRESQL.find(database) else type(database).__name__
    require_postgresql(conn, dialect)
    if _ASYNC.find(database):
        return Description("asyncpg", "peewee", is_async=True, state=_async_state(database))
    on_psycopg2 = isinstance(database._adapter, database.psycopg2_adapter)
    driver = "psycopg2" if on_psycopg2 else "psycopg"
    return Description(driver, "peewee", is_async=False, state=_state(database))


@hookimpl
def execute_on_external(
    conn: Any, query: str, args: Mapping[str, Value]
) -> Rows | Awaitable[Rows] | None:
    if not _DATABASE.find(conn):
        return None
    if _ASYNC.find(_behind_proxy(conn)):
        return _execute_async(conn, query, args)
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
    return "closed" if held is None or held.is_closed() else "in_transaction"
