"""Piccolo: the object of ``engine.transaction()``, whose connection is asyncpg's to use."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from procrastinate_extconn import describe
from procrastinate_extconn.drivers import Classes, Refusal, describe_held, execute_on_held
from procrastinate_extconn.hookspecs import Description, Kind, Rows, Value, hookimpl

_ENTER = Refusal("async with engine.transaction() as transaction: ...")
_TRANSACTION = Classes[bool](
    {
        "piccolo.engine.base.BaseTransaction": True,
        "piccolo.engine.base.BaseAtomic": _ENTER,
        "piccolo.engine.base.Engine": _ENTER,
    }
)


@hookimpl
def describe_external(conn: Any) -> Description | None:
    if not _TRANSACTION.find(conn):
        return None
    dialect = conn.engine.engine_type
    held = getattr(conn, "connection", None)
    if dialect != "postgres":
        state = known.state if (known := describe_held(held)) else "unknown"
        return Description(dialect, "piccolo", True, state, _ENTER.advice, dialect)
    if held is None:  # a transaction that nobody has entered
        return Description("asyncpg", "piccolo", is_async=True, state="closed")
    return describe(held)._replace(plugin="piccolo", begin=_ENTER.advice)


@hookimpl
def execute_on_external(
    conn: Any, query: str, args: Mapping[str, Value]
) -> Rows | Awaitable[Rows] | None:
    return execute_on_held(conn.connection, query, args) if _TRANSACTION.find(conn) else None


@hookimpl
def external_kinds() -> Sequence[Kind]:
    from .kinds import KINDS

    return KINDS
