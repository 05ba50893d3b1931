"""`Outbox`, and the plugin that writes the jobs of a call as one row."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

from procrastinate_extconn.drivers import describe_held, execute_on_held
from procrastinate_extconn.hookspecs import Description, Rows, Value, hookimpl

from .tables import OUTBOX, split


class Outbox:
    """A connection to another database than Procrastinate's, accepted wherever a connection is."""

    def __init__(self, conn: object, *, table: str = OUTBOX) -> None:
        split(table)
        self.conn = conn
        self.table = table


@hookimpl
def describe_external(conn: Any) -> Description | None:
    return describe_held(conn.conn) if isinstance(conn, Outbox) else None


@hookimpl
def execute_on_external(
    conn: Any, query: str, args: Mapping[str, Value]
) -> Rows | Awaitable[Rows] | None:
    return execute_on_held(conn.conn, query, args) if isinstance(conn, Outbox) else None
