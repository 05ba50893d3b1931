"""myasyncdriver: `myasyncdriver.Connection` and `myasyncdriver.Pool`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from procrastinate_extconn import Description, Diagnostic, hookimpl
from procrastinate_extconn.drivers import Classes, Refusal, numeric
from procrastinate_extconn.hookspecs import Listener, Rows, State, Value
from procrastinate_extconn.kinds import Held, Kind

_TAKE = "async with pool.take() as conn: ..."
_BEGIN = "await conn.begin()"
_CONNECTION = Classes[bool](
    {"myasyncdriver.Connection": True, "myasyncdriver.Pool": Refusal(_TAKE)}
)
_POOL = Classes[bool]({"myasyncdriver.Pool": True})
_ERROR = Classes[bool]({"myasyncdriver.ServerError": True})
_STATES: dict[str, State] = {"I": "autocommit", "T": "in_transaction", "E": "failed"}


@hookimpl
def describe_external(conn: Any) -> Description | None:
    if not _CONNECTION.find(conn):
        return None
    state = "closed" if conn.closed else _STATES[conn.status]
    return Description("myasyncdriver", "myasyncdriver", True, state, _BEGIN)


@hookimpl
def execute_on_external(conn: Any, query: str, args: Mapping[str, Value]) -> Awaitable[Rows] | None:
    return _execute(conn, query, args) if _CONNECTION.find(conn) else None


async def _execute(conn: Any, query: str, args: Mapping[str, Value]) -> Rows:
    query, names = numeric(query)
    records = await conn.fetch(query, *[args[name] for name in names])
    return [dict(record) for record in records]


@hookimpl
def read_external_error(error: BaseException) -> Diagnostic | None:
    if not _ERROR.find(error):
        return None
    fields: dict[str, str] = getattr(error, "fields", {})
    return Diagnostic(
        fields.get("code"), fields.get("text"), fields.get("detail"), fields.get("constraint")
    )


@hookimpl
def connect_external(pool: Any) -> AbstractAsyncContextManager[object] | None:
    return _connect(pool) if _POOL.find(pool) else None


@asynccontextmanager
async def _connect(pool: Any) -> AsyncGenerator[object]:
    async with pool.take() as conn:
        await conn.begin()
        try:
            yield conn
        except BaseException:
            await conn.rollback()
            raise
        await conn.commit()


@hookimpl
def listen_external(
    pool: Any, channels: Sequence[str]
) -> AbstractAsyncContextManager[Listener] | None:
    return _listen(pool, channels) if _POOL.find(pool) else None


@asynccontextmanager
async def _listen(pool: Any, channels: Sequence[str]) -> AsyncGenerator[Listener]:
    heard: asyncio.Queue[tuple[str, str] | None] = asyncio.Queue()
    async with pool.take() as conn:
        # The driver calls the first for each notification, and the second when the connection is lost.
        conn.on_notification(lambda *notification: heard.put_nowait(notification))
        conn.on_loss(lambda: heard.put_nowait(None))
        for channel in channels:
            await conn.listen(channel)
        try:
            yield Listener(conn, _notifications(heard))
        finally:
            conn.on_notification(None)
            conn.on_loss(None)
            await conn.unlisten()


async def _notifications(
    heard: asyncio.Queue[tuple[str, str] | None],
) -> AsyncGenerator[tuple[str, str]]:
    while notification := await heard.get():
        yield notification


@hookimpl
def external_kinds() -> list[Kind]:
    return [Kind("myasyncdriver", "myasyncdriver", ("myasyncdriver",), True, _open)]


@asynccontextmanager
async def _open(dsn: str) -> AsyncGenerator[Held]:
    import myasyncdriver

    async with myasyncdriver.Pool(dsn) as pool, pool.take() as conn:
        await conn.begin()
        yield Held(conn, conn.fetch_tuples, conn.commit, conn.rollback)
