"""mydriver: `mydriver.Connection`."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from procrastinate_extconn import Description, hookimpl
from procrastinate_extconn.drivers import Classes, Refusal, positional, rows
from procrastinate_extconn.hookspecs import Rows, State, Value
from procrastinate_extconn.kinds import Held, Kind, dbapi

_CONNECTION = Classes[bool](
    {
        "mydriver.Connection": True,
        "mydriver.Cursor": Refusal("cursor.connection"),
        "mydriver.Pool": Refusal("conn = pool.take()"),
    }
)


@hookimpl
def describe_external(conn: Any) -> Description | None:
    if not _CONNECTION.find(conn):
        return None
    return Description("mydriver", "mydriver", False, _state(conn), "conn.autocommit = False")


def _state(conn: Any) -> State:
    if conn.closed:
        return "closed"
    if conn.in_transaction:
        return "in_transaction"
    return "autocommit" if conn.autocommit else "idle"


@hookimpl
def execute_on_external(conn: Any, query: str, args: Mapping[str, Value]) -> Rows | None:
    if not _CONNECTION.find(conn):
        return None
    query, names = positional(query)
    with closing(conn.cursor()) as cursor:
        cursor.execute(query, [args[name] for name in names])
        return rows(cursor.description, cursor.fetchall)


@hookimpl
def external_kinds() -> list[Kind]:
    return [Kind("mydriver", "mydriver", ("mydriver",), False, _open)]


@contextmanager
def _open(dsn: str) -> Generator[Held]:
    import mydriver

    with closing(mydriver.connect(dsn)) as conn:
        yield dbapi(conn)
