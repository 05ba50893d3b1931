"""mydriver: `mydriver.Connection`."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any

from procrastinate_extconn import Description, hookimpl
from procrastinate_extconn.drivers import Classes, Refusal, positional
from procrastinate_extconn.hookspecs import Rows, State, Value

if TYPE_CHECKING:
    from mydriver import Connection

_CONNECTION = Classes[bool](
    {
        "mydriver.Connection": True,
        "mydriver.Pool": Refusal("async with pool.take() as conn: ..."),
    }
)


@hookimpl
def describe_external(conn: Any) -> Description | None:
    if not _CONNECTION.find(conn):
        return None
    return Description("mydriver", "mydriver", is_async=True, state=_state(conn))


def _state(conn: Connection) -> State:
    if conn.closed:
        return "closed"
    return "in_transaction" if conn.in_transaction else "autocommit"


@hookimpl
def execute_on_external(conn: Any, query: str, args: Mapping[str, Value]) -> Awaitable[Rows] | None:
    return _execute(conn, query, args) if _CONNECTION.find(conn) else None


async def _execute(conn: Connection, query: str, args: Mapping[str, Value]) -> Rows:
    query, names = positional(query)
    rows = await conn.fetch(query, [args[name] for name in names])
    return [row._asdict() for row in rows]
