"""PyMySQL, mysqlclient and MariaDB's connector, and the async ones that stand on PyMySQL: aiomysql and asyncmy.

SQLAlchemy's connections on them are described here too; Django's describe themselves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

from procrastinate_extconn.drivers import Classes, rows
from procrastinate_extconn.hookspecs import Description, Rows, State, Value, hookimpl

_IS_ASYNC = Classes[bool](
    {
        "pymysql.connections.Connection": False,
        "MySQLdb.connections.Connection": False,
        "mariadb.Connection": False,
        "mariadb.connections.Connection": False,
        "aiomysql.connection.Connection": True,
        "asyncmy.connection.Connection": True,
    }
)
_IN_TRANSACTION = 1
"""The bit of the protocol's server status."""


@hookimpl
def describe_external(conn: Any) -> Description | None:
    is_async = _IS_ASYNC.find(conn)
    if is_async is None:
        return None
    begin = "await conn.begin()" if is_async else "conn.begin()"
    driver = type(conn).__module__.partition(".")[0]
    return Description(driver, "mysql", is_async, _state(conn), begin, "mysql")


def _state(conn: Any) -> State:
    if not _is_open(conn):
        return "closed"
    # The state after the last statement, as the server told it. mysqlclient keeps it to itself.
    if getattr(conn, "server_status", 0) & _IN_TRANSACTION:
        return "in_transaction"
    autocommit = conn.get_autocommit() if hasattr(conn, "get_autocommit") else conn.autocommit
    return "autocommit" if autocommit else "idle"


def _is_open(conn: Any) -> bool:
    if hasattr(conn, "_closed"):  # MariaDB's connector asks the server, in its `open`.
        return not conn._closed
    if hasattr(conn, "closed"):  # aiomysql
        return not conn.closed
    return bool(conn.connected if hasattr(conn, "connected") else conn.open)


@hookimpl
def execute_on_external(
    conn: Any, query: str, args: Mapping[str, Value]
) -> Rows | Awaitable[Rows] | None:
    is_async = _IS_ASYNC.find(conn)
    if is_async is None:
        return None
    if is_async:
        return _execute(conn, query, args)
    with conn.cursor() as cursor:
        cursor.execute(query, dict(args))
        return rows(cursor.description, cursor.fetchall)


async def _execute(conn: Any, query: str, args: Mapping[str, Value]) -> Rows:
    async with conn.cursor() as cursor:
        await cursor.execute(query, dict(args))
        fetched = list(await cursor.fetchall()) if cursor.description else []
        return rows(cursor.description, lambda: fetched)
