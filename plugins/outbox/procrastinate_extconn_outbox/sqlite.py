"""sqlite3 and aiosqlite. SQLAlchemy's connections on them are described here too; Django's describe themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

from procrastinate_extconn.drivers import Classes, Refusal, named, rows
from procrastinate_extconn.hookspecs import Description, Rows, State, Value, hookimpl

_IS_ASYNC = Classes[bool](
    {
        "sqlite3.Connection": False,
        "sqlite3.Cursor": Refusal("cursor.connection"),
        "aiosqlite.Connection": True,
    }
)


@hookimpl
def describe_external(conn: Any) -> Description | None:
    is_async = _IS_ASYNC.find(conn)
    if is_async is None:
        return None
    begin = 'await conn.execute("BEGIN")' if is_async else 'conn.execute("BEGIN")'
    driver = "aiosqlite" if is_async else "sqlite3"
    return Description(driver, "sqlite", is_async, _state(conn), begin, "sqlite")


def _state(conn: Any) -> State:
    try:
        if conn.in_transaction:
            return "in_transaction"
        # aiosqlite lacks the attribute of Python 3.12. Its value -1 leaves the matter to `isolation_level`.
        autocommit = getattr(getattr(conn, "_conn", conn), "autocommit", -1)
        level = conn.isolation_level
    except Exception:  # noqa: BLE001 - a closed connection; aiosqlite has a ValueError for it, sqlite3 one of its own
        return "closed"
    by_itself = level is None if autocommit not in (True, False) else autocommit
    return "autocommit" if by_itself else "idle"


@hookimpl
def execute_on_external(
    conn: Any, query: str, args: Mapping[str, Value]
) -> Rows | Awaitable[Rows] | None:
    is_async = _IS_ASYNC.find(conn)
    if is_async is None:
        return None
    if is_async:
        return _execute(conn, query, args)
    cursor = conn.execute(named(query), dict(args))
    return rows(cursor.description, cursor.fetchall)


async def _execute(conn: Any, query: str, args: Mapping[str, Value]) -> Rows:
    async with conn.execute(named(query), dict(args)) as cursor:
        fetched = list(await cursor.fetchall())
        return rows(cursor.description, lambda: fetched)
