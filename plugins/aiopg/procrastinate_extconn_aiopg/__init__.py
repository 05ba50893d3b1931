"""aiopg: `aiopg.Connection`, in the transaction that a ``BEGIN`` has opened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from procrastinate_extconn.drivers import Classes, Refusal, libpq_state, require_encoding, rows
from procrastinate_extconn.exceptions import ExternalConnectionError
from procrastinate_extconn.hookspecs import Description, Kind, Listener, Rows, Value, hookimpl

_CONNECTION = Classes[bool](
    {
        "aiopg.Connection": True,
        "aiopg.Cursor": Refusal("cursor.connection"),
        "aiopg.Pool": Refusal("async with pool.acquire() as conn: ..."),
    }
)
_BEGIN = "async with conn.cursor() as cursor, cursor.begin(): ..."
_POOL = Classes[bool]({"aiopg.Pool": True})


@hookimpl
def describe_external(conn: Any) -> Description | None:
    if not _CONNECTION.find(conn):
        return None
    state = libpq_state(conn.raw, conn.raw.get_transaction_status())
    if (
        state == "unknown"
    ):  # A statement is running: aiopg refuses another one meanwhile, and says so.
        state = "in_transaction"
    return Description("aiopg", "aiopg", is_async=True, state=state, begin=_BEGIN)


@hookimpl
def execute_on_external(conn: Any, query: str, args: Mapping[str, Value]) -> Awaitable[Rows] | None:
    return _execute(conn, query, args) if _CONNECTION.find(conn) else None


async def _execute(conn: Any, query: str, args: Mapping[str, Value]) -> Rows:
    require_encoding(conn.raw.encoding, conn.raw.get_parameter_status("client_encoding"))
    async with conn.cursor() as cursor:
        try:
            await cursor.execute(query, args)
        except asyncio.CancelledError as exc:
            # aiopg's word for a statement that the server has cancelled too, although nobody has cancelled the task.
            import psycopg2

            if isinstance(exc.__context__, psycopg2.Error):
                raise exc.__context__ from None
            raise
        fetched: list[Any] = await cursor.fetchall() if cursor.description else []
        return rows(cursor.description, lambda: fetched)


@hookimpl
def connect_external(pool: Any) -> AbstractAsyncContextManager[object] | None:
    return _lend(pool) if _POOL.find(pool) else None


def _require_open(pool: Any) -> None:
    if pool.closed or getattr(pool, "_closing", False):
        raise ExternalConnectionError(
            "this aiopg.Pool is closed: make one with `async with aiopg.create_pool(...) as pool: ...`"
        )


@asynccontextmanager
async def _lend(pool: Any) -> AsyncGenerator[object]:
    _require_open(pool)
    async with pool.acquire() as conn, conn.cursor() as cursor, cursor.begin():
        yield conn


@hookimpl
def listen_external(
    pool: Any, channels: Sequence[str]
) -> AbstractAsyncContextManager[Listener] | None:
    return _listen(pool, channels) if _POOL.find(pool) else None


@asynccontextmanager
async def _listen(pool: Any, channels: Sequence[str]) -> AsyncGenerator[Listener, None]:
    _require_open(pool)
    async with pool.acquire() as conn:
        try:
            async with conn.cursor() as cursor:
                for channel in channels:
                    quoted = channel.replace('"', '""')
                    await cursor.execute(f'LISTEN "{quoted}"')
            yield Listener(conn, _Received(conn), pool.maxsize or None)
            async with conn.cursor() as cursor:
                await cursor.execute("UNLISTEN *")
        except BaseException:
            await conn.close()
            raise


class _Received:
    """The notifications of a connection. aiopg reads them by itself, and raises where the connection is closed."""

    def __init__(self, conn: Any) -> None:
        self._notifies = conn.notifies

    def __aiter__(self) -> _Received:
        return self

    async def __anext__(self) -> tuple[str, str]:
        notify = await self._notifies.get()
        return notify.channel, notify.payload


@hookimpl
def external_kinds() -> Sequence[Kind]:
    from .kinds import KINDS

    return KINDS
