"""psqlpy: `psqlpy.Connection` and `psqlpy.Transaction`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from procrastinate_extconn.drivers import Classes, Notifications, Refusal, numeric
from procrastinate_extconn.hookspecs import (
    Description,
    Diagnostic,
    Kind,
    Listener,
    Rows,
    State,
    Value,
    hookimpl,
)

if TYPE_CHECKING:
    from psqlpy import Connection, ConnectionPool, Transaction

T = TypeVar("T")

_IS_TRANSACTION = Classes[bool](
    {
        "psqlpy.Connection": False,
        "psqlpy.Transaction": True,
        "psqlpy.ConnectionPool": Refusal("async with pool.acquire() as conn: ..."),
        "psqlpy.Cursor": Refusal("configure(connection=conn)  # the connection that made it"),
    }
)
_BEGIN = "async with conn.transaction() as transaction: ...  # and pass transaction"
_ERROR = Classes[bool]({"psqlpy.exceptions.Error": True})
_POOL = Classes[bool]({"psqlpy.ConnectionPool": True})


@hookimpl
def describe_external(conn: Any) -> Description | None:
    is_transaction = _IS_TRANSACTION.find(conn)
    if is_transaction is None:
        return None
    state = _state(conn, is_transaction)
    return Description("psqlpy", "psqlpy", is_async=True, state=state, begin=_BEGIN)


def _state(conn: Any, is_transaction: bool) -> State:
    import psqlpy.exceptions

    # is_closed() says the opposite of what is so, up to psqlpy 0.13. A pipeline of nothing sends nothing.
    try:
        if is_transaction:
            _at_once(conn.pipeline())
            return "in_transaction"
        conn.transaction()
    except psqlpy.exceptions.InterfaceError:
        return "closed"
    # False says that it began none itself: somebody may have sent a BEGIN.
    return "in_transaction" if _at_once(conn.in_transaction()) else "unknown"


def _at_once(coroutine: Coroutine[Any, Any, T]) -> T | None:
    """The result of a coroutine that waits for no server."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    return None


@hookimpl
def execute_on_external(conn: Any, query: str, args: Mapping[str, Value]) -> Awaitable[Rows] | None:
    return None if _IS_TRANSACTION.find(conn) is None else _execute(conn, query, args)


async def _execute(conn: Connection | Transaction, query: str, args: Mapping[str, Value]) -> Rows:
    query, names = numeric(_UNREADABLE.sub(r"CAST(\g<0> AS text)", query))
    result = await conn.execute(query, [args[name] for name in names])
    return result.result(custom_decoders=_DECODERS)


# psqlpy reads neither void nor regclass, and a number in JSON as a 64-bit one.
_UNREADABLE = re.compile(
    r"(?<=^SELECT )(?:to_regclass\([^;]*\)|procrastinate_\w+\([^;]*\)(?=;?\s*$))"
)


def _json(raw: bytes) -> str:
    return raw.removeprefix(b"\x01").decode()  # jsonb starts with its version


_DECODERS: dict[str, Callable[[bytes], Any]] = {"args": _json, "stats": _json}


# psqlpy keeps the text of the server's error alone. In English, the message tells the SQLSTATE.
_TEXT = re.compile(
    r"db error: \w+: (?P<message>.*?)(?:\n(?:DETAIL|HINT): (?P<detail>.*))?$", re.DOTALL
)
_SQLSTATES = {
    "^current transaction is aborted": "25P02",
    "in a read-only transaction$": "25006",
    "^could not serialize access": "40001",
    "^deadlock detected": "40P01",
    "^canceling statement due to lock timeout": "55P03",
    "^permission denied": "42501",
    '^relation ".*" does not exist': "42P01",
    "^function .* does not exist": "42883",
    '^type ".*" does not exist': "42704",
    "^duplicate key value": "23505",
    "^invalid input syntax for type json": "22P02",
    "^unsupported Unicode escape sequence": "22P05",
    "^terminating connection": "57P01",
    "^stack depth limit exceeded": "54001",
}


@hookimpl
def read_external_error(error: BaseException) -> Diagnostic | None:
    if not _ERROR.find(error) or (said := _TEXT.search(str(error))) is None:
        return None
    message = said["message"]
    sqlstate = next((code for text, code in _SQLSTATES.items() if re.search(text, message)), None)
    return Diagnostic(sqlstate, message, said["detail"])


@hookimpl
def connect_external(pool: Any) -> AbstractAsyncContextManager[Any] | None:
    return _connect(pool) if _POOL.find(pool) else None


@contextlib.asynccontextmanager
async def _connect(pool: ConnectionPool) -> AsyncGenerator[Transaction, None]:
    async with pool.acquire() as conn, conn.transaction() as transaction:
        yield transaction


@hookimpl
def listen_external(
    pool: Any, channels: Sequence[str]
) -> AbstractAsyncContextManager[Listener] | None:
    # psqlpy listens on connections that are not of a pool, so a connection of one is only held.
    return _hold(pool) if _POOL.find(pool) and not channels else None


@contextlib.asynccontextmanager
async def _hold(pool: ConnectionPool) -> AsyncGenerator[Listener, None]:
    async with pool.acquire() as conn:
        yield Listener(conn, Notifications(), pool.status().max_size)


@hookimpl
def external_kinds() -> Sequence[Kind]:
    from .kinds import KINDS

    return KINDS
