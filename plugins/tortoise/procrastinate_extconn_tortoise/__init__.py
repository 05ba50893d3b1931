"""Tortoise ORM: the object of ``in_transaction()``, whose connection is asyncpg's or psycopg's to use."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from procrastinate_extconn import describe
from procrastinate_extconn.drivers import Classes, Refusal, describe_held, execute_on_held
from procrastinate_extconn.hookspecs import Description, Kind, Rows, Value, hookimpl

_ENTER = Refusal("async with in_transaction() as connection: ...")
_TRANSACTION = Classes[bool](
    {
        "tortoise.backends.base.client.TransactionalDBClient": True,
        "tortoise.backends.base.client.BaseDBAsyncClient": _ENTER,
        "tortoise.backends.base.client.TransactionContext": _ENTER,
    }
)


@hookimpl
def describe_external(conn: Any) -> Description | None:
    if not _TRANSACTION.find(conn):
        return None
    dialect = conn.capabilities.dialect
    if dialect == "postgres":
        held = describe(conn._connection)._replace(plugin="tortoise", begin=_ENTER.advice)
    else:
        state = known.state if (known := describe_held(conn._connection)) else "unknown"
        held = Description(dialect, "tortoise", True, state, _ENTER.advice, dialect)
    # By now the connection may be back in the pool, or somebody else's.
    return held._replace(state="closed") if conn._finalized else held


@hookimpl
def execute_on_external(conn: Any, query: str, args: Mapping[str, Value]) -> Awaitable[Rows] | None:
    return _execute(conn, query, args) if _TRANSACTION.find(conn) else None


async def _execute(conn: Any, query: str, args: Mapping[str, Value]) -> Rows:
    async with conn.acquire_connection() as held:  # Tortoise's own queries wait.
        result = execute_on_held(held, query, args)
        return result if isinstance(result, list) else await result


@hookimpl
def external_kinds() -> Sequence[Kind]:
    from .kinds import KINDS

    return KINDS
