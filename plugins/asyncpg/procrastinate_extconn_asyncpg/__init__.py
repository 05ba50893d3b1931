"""asyncpg: `asyncpg.Connection`, and what an `asyncpg.Pool` lends."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from procrastinate_extconn.drivers import Classes, Notifications, Refusal, numeric
from procrastinate_extconn.exceptions import ExternalConnectionError
from procrastinate_extconn.hookspecs import (
    Description,
    Kind,
    Listener,
    Rows,
    State,
    Value,
    hookimpl,
)

_WHERE_IT_CAME_FROM = Refusal("configure(connection=conn)  # the connection that made it")
_CONNECTION = Classes[bool](
    {
        "asyncpg.Connection": True,
        "asyncpg.pool.PoolConnectionProxy": True,
        "asyncpg.Pool": Refusal("async with pool.acquire() as conn: ..."),
        "asyncpg.pool.PoolAcquireContext": Refusal("async with pool.acquire() as conn: ..."),
        "databases.core.Database": Refusal("database.connection().raw_connection"),
        "asyncpg.transaction.Transaction": _WHERE_IT_CAME_FROM,
        "asyncpg.cursor.CursorFactory": _WHERE_IT_CAME_FROM,
        "asyncpg.cursor.BaseCursor": _WHERE_IT_CAME_FROM,
    }
)
_BEGIN = "async with conn.transaction(): ..."
_POOL = Classes[bool]({"asyncpg.Pool": True})


@hookimpl
def describe_external(conn: Any) -> Description | None:
    if not _CONNECTION.find(conn):
        return None
    return Description("asyncpg", "asyncpg", is_async=True, state=_state(conn), begin=_BEGIN)


def _state(conn: Any) -> State:
    try:
        if conn.is_closed():
            return "closed"
        return "in_transaction" if conn.is_in_transaction() else "autocommit"
    except sys.modules["asyncpg"].InterfaceError:  # given back to its pool
        return "closed"


@hookimpl
def execute_on_external(conn: Any, query: str, args: Mapping[str, Value]) -> Awaitable[Rows] | None:
    return _execute(conn, query, args) if _CONNECTION.find(conn) else None


async def _execute(conn: Any, query: str, args: Mapping[str, Value]) -> Rows:
    query, names = numeric(query)
    if _has_text_codec(conn):
        query = await _past_text_codec(conn, query)
    records = await conn.fetch(query, *[args[name] for name in names])
    # A connection's own record class may make anything of a row, and an own `fetch()` may know no record class.
    items = sys.modules["asyncpg"].Record.items
    return [dict(items(record)) for record in records]


@hookimpl
def connect_external(pool: Any) -> AbstractAsyncContextManager[Any] | None:
    return _connect(pool) if _POOL.find(pool) else None


def _require_open(pool: Any) -> None:
    if pool.is_closing() or not getattr(pool, "_initialized", True):
        raise ExternalConnectionError(
            "this asyncpg.Pool is not open, or closed again: open it with `await pool`, or make it with "
            "`async with asyncpg.create_pool(...) as pool: ...`"
        )


@contextlib.asynccontextmanager
async def _connect(pool: Any) -> AsyncGenerator[Any, None]:
    _require_open(pool)
    async with pool.acquire() as conn, conn.transaction():
        yield conn


@hookimpl
def listen_external(
    pool: Any, channels: Sequence[str]
) -> AbstractAsyncContextManager[Listener] | None:
    return _listen(pool, channels) if _POOL.find(pool) else None


@contextlib.asynccontextmanager
async def _listen(pool: Any, channels: Sequence[str]) -> AsyncGenerator[Listener, None]:
    _require_open(pool)
    received = Notifications()

    def handle(conn: object, pid: int, channel: str, payload: str) -> None:
        received.put(channel, payload)

    async with pool.acquire() as conn:
        try:
            conn.add_termination_listener(received.end)
            for channel in channels:
                await conn.add_listener(channel, handle)
            yield Listener(conn, received, pool.get_max_size())
            conn.remove_termination_listener(received.end)
            for channel in channels:
                await conn.remove_listener(channel, handle)
        except BaseException:
            conn.terminate()
            raise
        finally:
            received.end()


# A person's codec for `text` is asyncpg's for enums as well, and may make anything of both. Text then travels as
# `cstring`, for which nobody sets a codec. What JSON becomes is left to a codec for JSON.

_TEXT_OID = 25
_NOT_TEXT = ("bool", "int2", "int4", "int8", "float8", "numeric", "timestamptz")


def _has_text_codec(conn: Any) -> bool:
    settings = conn.get_settings()
    builtin = settings.get_data_codec(_TEXT_OID, ignore_custom_codec=True)
    return settings.get_data_codec(_TEXT_OID) is not builtin


async def _past_text_codec(conn: Any, query: str) -> str:
    statement = await conn.prepare(query)
    types = statement.get_parameters()
    query = re.sub(r"\$(\d+)", lambda match: _received(match[0], types[int(match[1]) - 1]), query)
    columns = ", ".join(_sent(f'"{name}"', type_) for name, type_ in statement.get_attributes())
    return (
        f"WITH result AS ({query.rstrip(' ;')}) SELECT {columns} FROM result" if columns else query  # noqa: S608
    )


def _received(placeholder: str, type_: Any) -> str:
    element = type_.name.removesuffix("[]")
    if element in _NOT_TEXT:
        return placeholder
    if element != type_.name:  # no codec for text is asked about text[]
        return f'CAST(CAST({placeholder} AS text[]) AS "{type_.schema}"."{element}"[])'
    return f'CAST(CAST(CAST({placeholder} AS cstring) AS text) AS "{type_.schema}"."{element}")'


def _sent(column: str, type_: Any) -> str:
    return (
        column
        if type_.name in _NOT_TEXT
        else f"CAST(CAST({column} AS text) AS cstring) AS {column}"
    )


@hookimpl
def external_kinds() -> Sequence[Kind]:
    from .kinds import KINDS

    return KINDS
