"""SQLAlchemy 2: connections and sessions, sync and async, on any PostgreSQL dialect.

Every statement goes through the object that was passed, because SQLAlchemy begins the transaction. A dialect may send
its BEGIN no sooner than the first statement.
"""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from ..drivers import (
    Classes,
    Notifications,
    Refusal,
    StateSeen,
    describe_held,
    named,
)
from ..exceptions import SyncAsyncMismatch, UnusableConnection
from ..hookspecs import Description, Kind, Listener, Rows, State, Value, hookimpl
from ..queries import notifies, writes
from . import psycopg
from .sqlalchemy_drivers import GUARDS
from .sqlalchemy_routing import bind_of, wrote
from .sqlalchemy_sessions import connection_of, held_by, held_connections, refuse_ended

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, TextClause
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.orm import Session

_IS_ASYNC = Classes[bool](
    {
        "sqlalchemy.engine.Connection": False,
        "sqlalchemy.orm.Session": False,
        "sqlalchemy.orm.scoped_session": False,
        "sqlalchemy.ext.asyncio.AsyncConnection": True,
        "sqlalchemy.ext.asyncio.AsyncSession": True,
        "sqlalchemy.ext.asyncio.async_scoped_session": True,
        "sqlalchemy.engine.Engine": Refusal("with engine.begin() as conn: ..."),
        "sqlalchemy.engine.URL": Refusal("with create_engine(url).begin() as conn: ..."),
        "sqlalchemy.pool.Pool": Refusal("with engine.begin() as conn: ..."),
        "sqlalchemy.pool.PoolProxiedConnection": Refusal("raw.driver_connection"),
        "sqlalchemy.engine.AdaptedConnection": Refusal("raw.driver_connection"),
        "sqlalchemy.orm.sessionmaker": Refusal("with sessionmaker.begin() as session: ..."),
        "sqlalchemy.ext.asyncio.AsyncEngine": Refusal("async with engine.begin() as conn: ..."),
        "sqlalchemy.ext.asyncio.async_sessionmaker": Refusal(
            "async with sessionmaker.begin() as session: ..."
        ),
        "sqlalchemy.engine.CursorResult": Refusal("result.connection"),
        "sqlalchemy.engine.Transaction": Refusal("transaction.connection"),
        "sqlalchemy.ext.asyncio.AsyncTransaction": Refusal("transaction.connection"),
        "sqlalchemy.orm.SessionTransaction": Refusal("transaction.session"),
        "sqlalchemy.ext.asyncio.AsyncSessionTransaction": Refusal("transaction.session"),
    }
)
_IS_ASYNC_POOL = Classes[bool](
    {"sqlalchemy.engine.Engine": False, "sqlalchemy.ext.asyncio.AsyncEngine": True}
)
_LEVEL = 'engine.execution_options(isolation_level="READ COMMITTED")'
_BEGIN = {
    (True, False): f"with {_LEVEL}.begin() as conn: ...",
    (False, False): f"with Session({_LEVEL}) as session: ...",
    (True, True): f"async with {_LEVEL}.begin() as conn: ...",
    (False, True): f"async with AsyncSession({_LEVEL}) as session: ...",
}
"""The line that opens a transaction, by whether it is a connection, and async."""

_NO_GREENLET = (
    "this is the synchronous side of an asynchronous SQLAlchemy connection or session: pass the asynchronous one to "
    "`await ... .defer_async()`, or make the call in a function that `run_sync()` runs"
)
_CONNECTION = Classes[bool]({"sqlalchemy.engine.Connection": True})
_SCOPED = Classes[bool](
    {"sqlalchemy.orm.scoped_session": True, "sqlalchemy.ext.asyncio.async_scoped_session": True}
)


@hookimpl
def execute_on_external(
    conn: Any, query: str, args: Mapping[str, Value]
) -> Rows | Awaitable[Rows] | None:
    is_async = _IS_ASYNC.find(conn)
    if is_async is None:
        return None
    if not is_async:
        target = _current(conn)
        bind = target if _CONNECTION.find(target) else bind_of(target)
        # Before SQLAlchemy notices, which leaves a coroutine behind.
        if bind.dialect.is_async and not _in_greenlet():
            raise SyncAsyncMismatch(_NO_GREENLET)
        return _execute(target, query, args)
    return _current(conn).run_sync(_execute, query, args)  # type: ignore[no-any-return]


def _execute(target: Any, query: str, args: Mapping[str, Value]) -> Rows:
    connection: Connection = target if _CONNECTION.find(target) else _checked_out(target, query)
    if notifies(query, args) and hasattr(connection.get_transaction(), "prepare"):
        raise UnusableConnection(
            "this transaction is a two-phase one, and PostgreSQL does not prepare a transaction that has sent NOTIFY, "
            "as a deferred or aborted job does: use a transaction that is not two-phase"
        )
    if target is not connection and writes(query):
        wrote(target, connection)
    guard = GUARDS.get(connection.dialect.driver)
    execute = guard(connection, args) if guard else connection.execute
    result = execute(_text(query), dict(args))
    if not result.returns_rows:
        return []
    names = tuple(result.keys())
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


@functools.lru_cache(maxsize=256)
def _text(query: str) -> TextClause:
    from sqlalchemy import bindparam, text
    from sqlalchemy.types import NullType

    names = set(re.findall(r"%\((\w+)\)s", query))
    escaped = re.sub(r"(?<![:\w]):(?=\w)", r"\:", query)
    # Without a type, as with the driver alone: the server knows what each parameter should be.
    return text(named(escaped)).bindparams(*(bindparam(name, type_=NullType()) for name in names))


@hookimpl
def connect_external(
    pool: Any,
) -> AbstractContextManager[object] | AbstractAsyncContextManager[object] | None:
    return None if _IS_ASYNC_POOL.find(pool) is None else pool.begin()


@hookimpl
def listen_external(
    pool: Any, channels: Sequence[str]
) -> AbstractAsyncContextManager[Listener] | None:
    if not _IS_ASYNC_POOL.find(pool) or (channels and pool.dialect.driver not in _NOTIFICATIONS):
        return None
    return _listen(pool, channels)


@asynccontextmanager
async def _listen(engine: AsyncEngine, channels: Sequence[str]) -> AsyncGenerator[Listener, None]:
    async with engine.connect() as conn:
        try:
            await conn.execution_options(isolation_level="AUTOCOMMIT")
            await conn.exec_driver_sql("SELECT 1")  # A connection that is dead is replaced here.
            if not channels:
                yield Listener(conn, Notifications(), _size(engine))
                return
            raw: Any = (await conn.get_raw_connection()).driver_connection
            async with _NOTIFICATIONS[engine.dialect.driver](raw, channels) as received:
                yield Listener(conn, received, _size(engine))
        except BaseException:
            await conn.invalidate()
            raise


@asynccontextmanager
async def _of_asyncpg(conn: Any, channels: Sequence[str]) -> AsyncGenerator[Notifications, None]:
    received = Notifications()

    def handle(conn: object, pid: int, channel: str, payload: str) -> None:
        received.put(channel, payload)

    conn.add_termination_listener(received.end)
    for channel in channels:
        await conn.add_listener(channel, handle)
    try:
        yield received
    finally:
        received.end()
        conn.remove_termination_listener(received.end)
        for channel in channels:
            if not conn.is_closed():
                await conn.remove_listener(channel, handle)


_NOTIFICATIONS: dict[str, Callable[[Any, Sequence[str]], AbstractAsyncContextManager[Any]]] = {
    "asyncpg": _of_asyncpg,
    "psycopg": psycopg.notifications,
}
"""The drivers that listen -> how."""


def _size(engine: AsyncEngine) -> int | None:
    pool: Any = engine.pool
    overflow = getattr(pool, "_max_overflow", -1)
    return pool.size() + overflow if hasattr(pool, "size") and overflow >= 0 else None


@hookimpl
def describe_external(conn: Any) -> Description | None:
    is_async = _IS_ASYNC.find(conn)
    if is_async is None:
        return None
    try:
        target = _current(conn)
    except RuntimeError:
        if not is_async:
            raise
        # A scoped session has a session for each task, and no task runs: this is not an asynchronous call.
        return Description("sqlalchemy", "sqlalchemy", is_async, "unknown")
    if is_async:
        target = getattr(target, "sync_session", None) or target.sync_connection
        if target is None:  # an AsyncConnection that was not started
            return Description(conn.engine.dialect.driver, "sqlalchemy", is_async, "closed")
    is_connection = _CONNECTION.find(target)
    bind = target if is_connection else bind_of(target)
    dialect = bind.dialect
    state = _state(target) if is_connection else _session_state(target, bind)
    begin = _BEGIN[bool(is_connection), is_async]
    if dialect.name == "sqlite":  # which knows no READ COMMITTED
        begin = begin.replace("READ COMMITTED", "SERIALIZABLE")
    return Description(dialect.driver, "sqlalchemy", is_async, state, begin, dialect.name)


def _in_greenlet() -> bool:
    from sqlalchemy.util import concurrency

    in_greenlet = getattr(concurrency, "in_greenlet", None)  # older versions lack it
    return in_greenlet is None or in_greenlet()


def _current(conn: Any) -> Any:
    return conn() if _SCOPED.find(conn) else conn


def _checked_out(session: Session, query: str) -> Connection:
    """The connection of *session*, which may check it out now.

    :raises StateSeen: if only now one could see that the driver itself commits each statement.
    """
    before = len(held_connections(session))
    connection = connection_of(session)
    if (
        len(held_connections(session)) > before
        and writes(query)
        and _state(connection) == "autocommit"
    ):
        raise StateSeen
    return connection


def _session_state(session: Session, bind: Engine | Connection) -> State:
    transaction = session.get_nested_transaction() or session.get_transaction()
    if transaction is not None and not transaction.is_active:
        refuse_ended(session, transaction)
        return "failed"
    connection = held_by(session, bind)
    if connection is not None:
        return _state(connection)
    return "autocommit" if _opens_in_autocommit(bind) else "idle"


def _state(connection: Connection) -> State:
    if connection.closed:
        return "closed"
    if connection.invalidated:
        # SQLAlchemy connects anew with the next statement, unless a transaction was lost with the connection.
        return "failed" if connection.in_transaction() else "idle"
    held = connection.connection
    raw = describe_held(held.driver_connection)
    # A closed one is for SQLAlchemy to find, with the next statement: only then does it connect anew.
    if raw is not None and raw.state in ("in_transaction", "failed"):
        return raw.state
    is_begun = connection.in_transaction()
    if raw is not None and raw.state == "autocommit" and raw.dialect != "postgresql":
        # A listener may send BEGIN where the driver would not.
        return "autocommit" if is_begun or not connection.engine.dispatch.begin else "idle"
    dbapi_connection: Any = held.dbapi_connection
    is_postgresql = raw is None or raw.dialect == "postgresql"
    # The attribute of other databases' drivers may be a method, or a number.
    if is_postgresql and getattr(dbapi_connection, "autocommit", False) is True:
        return "autocommit"
    # Somebody has ended the transaction with SQL. What has a flag of its own, here or in the driver, begins no other.
    begins_none = getattr(dbapi_connection, "_transaction", held) is not None
    if raw is not None and raw.state == "autocommit" and begins_none:
        return "autocommit"
    return "in_transaction" if is_begun else "idle"


def _opens_in_autocommit(bind: Engine | Connection) -> bool:
    level = bind.get_execution_options().get("isolation_level")
    return (level or getattr(bind.dialect, "_on_connect_isolation_level", None)) == "AUTOCOMMIT"


@hookimpl
def external_kinds() -> Sequence[Kind]:
    from .sqlalchemy_kinds import KINDS

    return KINDS
