"""psycopg 3: `psycopg.Connection` and `psycopg.AsyncConnection`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..drivers import Classes, Notifications, Refusal, libpq_state, numeric
from ..exceptions import ExternalConnectionError
from ..hookspecs import Description, Kind, Listener, Rows, Value, hookimpl
from ..sync_async import done, finish

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg.adapt import AdaptersMap, PyFormat
    from psycopg.pq.abc import PGresult
    from psycopg_pool import AsyncConnectionPool, ConnectionPool

_IS_ASYNC = Classes[bool](
    {
        "psycopg.Connection": False,
        "psycopg.AsyncConnection": True,
        "psycopg_pool.ConnectionPool": Refusal("with pool.connection() as conn: ..."),
        "psycopg_pool.AsyncConnectionPool": Refusal("async with pool.connection() as conn: ..."),
        "psycopg.Cursor": Refusal("cursor.connection"),
        "psycopg.AsyncCursor": Refusal("cursor.connection"),
        "psycopg.Transaction": Refusal("transaction.connection"),
        "psycopg.AsyncTransaction": Refusal("transaction.connection"),
    }
)
_BEGIN = "with conn.transaction(): ...", "async with conn.transaction(): ..."
_IS_ASYNC_POOL = Classes[bool](
    {"psycopg_pool.ConnectionPool": False, "psycopg_pool.AsyncConnectionPool": True}
)
_IS_RAW = Classes[bool]({"psycopg.RawCursor": True, "psycopg.AsyncRawCursor": True})


@hookimpl
def describe_external(conn: Any) -> Description | None:
    is_async = _IS_ASYNC.find(conn)
    if is_async is None:
        return None
    state = libpq_state(conn, conn.pgconn.transaction_status)
    return Description("psycopg", "psycopg", is_async, state, _BEGIN[is_async])


@hookimpl
def execute_on_external(
    conn: Any, query: str, args: Mapping[str, Value]
) -> Rows | Awaitable[Rows] | None:
    is_async = _IS_ASYNC.find(conn)
    if is_async is None:
        return None
    rows = _execute(conn, query, args, is_async=is_async)
    return rows if is_async else finish(rows)


# The cursors close by themselves, as that of psycopg's own `Connection.execute()` does. A cursor keeps what it sent, so
# it goes before the rows are made.


async def _execute(conn: Any, query: str, args: Any, *, is_async: bool) -> Rows:
    cursor, query, args = _prepared(conn, query, args)
    executed = cursor.execute(query, args)
    if is_async:
        await executed
    if conn.pgconn.pipeline_status and _has_rows(query):
        await done(cursor.fetchall())  # Until then, the result has not arrived.
    result = cursor.pgresult
    del cursor
    return _rows(conn, result)


def _prepared(conn: Any, query: str, args: Mapping[str, Value]) -> tuple[Any, str, Any]:
    """A cursor of the person's own class, and what it executes."""
    cursor: Any = conn.cursor()  # An own `cursor()` may take no argument.
    cursor.row_factory = _tuple_row
    auto, defaults = _dumpers()
    for cls in {*map(type, args.values())}:
        default = defaults.get_dumper(cls, auto)
        if conn.adapters.get_dumper(cls, auto) is not default:
            cursor.adapters.register_dumper(cls, default)
    return (cursor, *_numbered(query, args)) if _IS_RAW.find(cursor) else (cursor, query, args)


def _tuple_row(cursor: Any) -> Any:
    return tuple


def _numbered(query: str, args: Mapping[str, Value]) -> tuple[str, list[Value]]:
    query, names = numeric(query)
    return query, [args[name] for name in names]


def _has_rows(query: str) -> bool:
    return query.lstrip()[:6].upper() in ("SELECT", "WITH S", "WITH J")


@hookimpl
def connect_external(
    pool: Any,
) -> AbstractContextManager[object] | AbstractAsyncContextManager[object] | None:
    is_async = _IS_ASYNC_POOL.find(pool)
    if is_async is None:
        return None
    return _lend_async(pool) if is_async else _lend(pool)


def _require_open(pool: Any, line: str) -> None:
    if pool.closed:
        raise ExternalConnectionError(
            f"this {type(pool).__name__} is not open, or closed again: open it with `{line}`"
        )


@contextmanager
def _lend(pool: ConnectionPool) -> Generator[object]:
    _require_open(pool, "with pool: ...")
    with pool.connection() as conn, conn.transaction():
        yield conn


@asynccontextmanager
async def _lend_async(pool: AsyncConnectionPool) -> AsyncGenerator[object]:
    _require_open(pool, "async with pool: ...")
    async with pool.connection() as conn, conn.transaction():
        yield conn


@hookimpl
def listen_external(
    pool: Any, channels: Sequence[str]
) -> AbstractAsyncContextManager[Listener] | None:
    return _listen(pool, channels) if _IS_ASYNC_POOL.find(pool) else None


@asynccontextmanager
async def _listen(
    pool: AsyncConnectionPool, channels: Sequence[str]
) -> AsyncGenerator[Listener, None]:
    _require_open(pool, "async with pool: ...")
    # A connection is taken anew when one was lost, often with all others. The pool would find each with a longer pause.
    await pool.check()
    async with pool.connection() as conn:
        autocommit = conn.autocommit
        await conn.set_autocommit(True)
        try:
            async with notifications(conn, channels) as received:
                yield Listener(conn, received, pool.max_size or None)
            await conn.set_autocommit(autocommit)
        except BaseException:
            await conn.close()
            raise


@asynccontextmanager
async def notifications(
    conn: AsyncConnection[Any], channels: Sequence[str]
) -> AsyncGenerator[Notifications, None]:
    """Listen on *conn*, which commits each statement and stays free for statements meanwhile."""
    received = Notifications()
    if not channels:
        yield received
        return
    from psycopg.sql import SQL, Identifier

    def handle(notify: Any) -> None:
        received.put(notify.channel, notify.payload)

    conn.add_notify_handler(handle)
    for channel in channels:
        await conn.execute(SQL("LISTEN {}").format(Identifier(channel)))
    try:
        with _watching(conn, received.end):
            yield received
        await conn.execute("UNLISTEN *")
    finally:
        conn.remove_notify_handler(handle)
        received.end()


# psycopg's own notifies() holds the connection's lock. Between statements the socket is watched here, through a
# descriptor of our own, as psycopg gives the event loop the socket's descriptor for each statement.


@contextlib.contextmanager
def _watching(conn: AsyncConnection[Any], lost: Callable[[], None]) -> Generator[None]:
    loop = asyncio.get_running_loop()
    descriptor = os.dup(conn.fileno())
    later: list[asyncio.TimerHandle] = []

    def look() -> None:
        # A statement may read a notification together with its own answer, after which the socket has no more to read.
        if conn.lock.locked():
            if not later:
                later.append(loop.call_later(0.002, look_again))
            return
        try:
            conn.pgconn.consume_input()
            while (notify := conn.pgconn.notifies()) and conn.pgconn.notify_handler:
                conn.pgconn.notify_handler(notify)
        except Exception:  # noqa: BLE001 - the next statement tells what it is
            loop.remove_reader(descriptor)
            lost()

    def look_again() -> None:
        later.clear()
        look()

    loop.add_reader(descriptor, look)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        for handle in later:
            handle.cancel()
        os.close(descriptor)


# Values are dumped and loaded as psycopg does by itself, JSON as text. A person's own dumpers and loaders, for one
# connection or for the process, may make anything of them.


@functools.cache
def _dumpers() -> tuple[PyFormat, AdaptersMap]:
    from psycopg.adapt import PyFormat

    return PyFormat.AUTO, _loading()[1]


@functools.cache
def _loading(*, bytes_are_text: bool = False) -> tuple[Any, AdaptersMap]:
    from psycopg import postgres
    from psycopg.adapt import AdaptersMap, Transformer
    from psycopg.types.string import TextLoader

    class Decoded(TextLoader):
        """Text of a connection whose encoding is SQL_ASCII, for which psycopg gives bytes."""

        def load(self, data: Any) -> str:
            text: Any = super().load(data)
            return text if isinstance(text, str) else text.decode(errors="surrogateescape")

    adapters = AdaptersMap(types=postgres.types)
    context: Any = SimpleNamespace(adapters=adapters, connection=None)
    postgres.register_default_adapters(context)
    as_text = ("json", "jsonb", *(("text", "varchar") if bytes_are_text else ()))
    for type_name in as_text:
        adapters.register_loader(type_name, Decoded if bytes_are_text else TextLoader)
    if bytes_are_text:
        adapters.register_loader(
            0, Decoded
        )  # every type that has no loader of its own, such as an enum
    return Transformer, adapters


def _rows(conn: Any, result: PGresult | None) -> Rows:
    if result is None or not result.nfields:
        return []
    is_ascii = conn.pgconn.parameter_status(b"client_encoding") == b"SQL_ASCII"
    transformer_class, adapters = _loading(bytes_are_text=is_ascii)
    transformer = transformer_class(SimpleNamespace(adapters=adapters, connection=conn))
    transformer.set_pgresult(result)
    names = [(result.fname(index) or b"").decode() for index in range(result.nfields)]
    load_row = transformer.load_row
    return [
        dict(zip(names, load_row(index, tuple)))  # noqa: B905 - strict=True takes as long again
        for index in range(result.ntuples)
    ]


@hookimpl
def external_kinds() -> Sequence[Kind]:
    from .psycopg_kinds import KINDS

    return KINDS
