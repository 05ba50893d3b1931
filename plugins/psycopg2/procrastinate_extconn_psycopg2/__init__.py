"""psycopg2: `psycopg2.extensions.connection`, with any cursor factory."""

from __future__ import annotations

import functools
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib import import_module
from typing import Any

from procrastinate_extconn.drivers import Classes, Refusal, libpq_state, require_encoding, rows
from procrastinate_extconn.exceptions import UnsupportedConnection
from procrastinate_extconn.hookspecs import Description, Kind, Rows, Value, hookimpl

_CONNECTION = Classes[bool](
    {
        "psycopg2.extensions.connection": True,
        "psycopg2.extensions.cursor": Refusal("cursor.connection"),
        "psycopg2.pool.AbstractConnectionPool": Refusal("conn = pool.getconn()"),
    }
)
_BEGIN = "conn.autocommit = False"
_BEGIN_AGAIN = "conn.rollback()"
_POOL = Classes[bool]({"psycopg2.pool.AbstractConnectionPool": True})


@hookimpl
def describe_external(conn: Any) -> Description | None:
    if not _CONNECTION.find(conn):
        return None
    if conn.async_:
        raise UnsupportedConnection(
            "procrastinate-extconn does not support external connections of psycopg2 in asynchronous mode: nothing "
            "waits for their results. Connect without `async_=True`, or with aiopg."
        )
    # psycopg2 does not notice a COMMIT that was sent as SQL, and sends no BEGIN after it.
    begun = conn.status == import_module("psycopg2.extensions").STATUS_BEGIN
    state = libpq_state(conn, conn.get_transaction_status(), begun=begun)
    begin = _BEGIN if conn.autocommit else _BEGIN_AGAIN
    return Description("psycopg2", "psycopg2", is_async=False, state=state, begin=begin)


@hookimpl
def execute_on_external(conn: Any, query: str, args: Mapping[str, Value]) -> Rows | None:
    if not _CONNECTION.find(conn):
        return None
    require_encoding(conn.encoding, conn.get_parameter_status("client_encoding"))
    # The connection's own cursor factory stays: it is where tracing libraries sit.
    with conn.cursor() as cursor:
        cursor.string_types = _casters().copy()
        cursor.execute(query, _adapted(args))
        return rows(cursor.description, cursor.fetchall)


@hookimpl
def connect_external(pool: Any) -> AbstractContextManager[object] | None:
    return _lend(pool) if _POOL.find(pool) else None


_PATIENCE = 30
"""Seconds to wait for a connection, as other drivers' pools do. psycopg2's own raises at once."""


@contextmanager
def _lend(pool: Any) -> Generator[object]:
    conn = _taken(pool)
    autocommit = conn.autocommit
    is_left_clean = False
    try:
        conn.autocommit = False
        yield conn
        conn.commit()
        is_left_clean = True
    finally:
        with suppress(import_module("psycopg2").Error):  # The connection is lost.
            conn.rollback()
            conn.autocommit = autocommit
            is_left_clean = True
        # If it is not, the pool would fail with a rollback of its own, and never have its place back.
        pool.putconn(conn, close=not is_left_clean)


def _taken(pool: Any) -> Any:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return pool.getconn()
        except import_module("psycopg2.pool").PoolError:
            if pool.closed or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _adapted(args: Mapping[str, Value]) -> dict[str, Any]:
    """*args* as psycopg2 adapts them by itself, without the adapters that an application has registered."""
    extensions: Any = import_module("psycopg2.extensions")
    by_default: dict[type, Any] = {
        str: extensions.QuotedString,
        bool: extensions.Boolean,
        int: extensions.Int,
        float: extensions.Float,
    }
    registered = extensions.adapters
    return {
        name: default(value)
        if (default := by_default.get(type(value)))
        and registered.get((type(value), extensions.ISQLQuote)) is not default
        else value
        for name, value in args.items()
    }


@functools.cache
def _casters() -> dict[int, Any]:
    """The typecasters for Procrastinate's rows, in place of those that an application has registered."""
    extensions: Any = import_module("psycopg2.extensions")
    names = ("BOOLEAN", "INTEGER", "LONGINTEGER", "PYDATETIMETZ", "UNICODE")
    json = extensions.new_type((114, 3802), "JSON", _as_text)
    casters = [json, *(getattr(extensions, name) for name in names)]
    return {oid: caster for caster in casters for oid in caster.values}


def _as_text(value: str | None, cursor: object) -> str | None:
    return value


@hookimpl
def external_kinds() -> Sequence[Kind]:
    from .kinds import KINDS

    return KINDS
