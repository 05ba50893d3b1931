"""The ways to hold a connection: for the demo, the doctor, the contract kit and the tests.

Each plugin names its own in `external_kinds`. Here is what they are made with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import closing
from typing import Any, TypeVar

from .builtin.dsn import address_of
from .hookspecs import Held, Kind
from .plugins import plugins
from .sync_async import done, finish

__all__ = ["Held", "Kind", "address_of", "all_kinds", "dbapi", "done", "kinds_of", "run", "tuples"]

T = TypeVar("T")


def all_kinds() -> tuple[Kind, ...]:
    """Every kind of connection that the installed plugins name. ``missing()`` of each says what this machine lacks."""
    return plugins().kinds()


def kinds_of(plugin: str) -> tuple[Kind, ...]:
    """Every kind of connection that *plugin* takes."""
    return tuple(kind for kind in all_kinds() if kind.plugin == plugin)


def run(kind: Kind, dsn: str, body: Callable[[Held], Coroutine[Any, Any, T]]) -> T:
    """Run *body* on a connection of this kind, as a person's program would.

    :param body: an ``async def`` for every kind. Where the kind is synchronous there is no event loop, so it may
        await nothing but `done`.
    """
    if not (kind.is_async or kind.in_greenlet):
        with kind.open(dsn) as held:
            return finish(body(held))

    async def main() -> T:
        async with kind.open(dsn) as held:
            return await kind.call(body, held)

    return asyncio.run(main())


def dbapi(conn: Any) -> Held:
    """A DB-API connection, held."""

    def execute(sql: str) -> list[tuple[Any, ...]]:
        with closing(conn.cursor()) as cursor:
            cursor.execute(sql)
            return tuples(cursor.description, cursor.fetchall)

    return Held(conn, execute, conn.commit, conn.rollback)


def tuples(description: Any, fetched: Callable[[], Any]) -> list[tuple[Any, ...]]:
    """The rows of a cursor as tuples, also where a row or cursor factory makes dicts of them.

    :param description: ``cursor.description``.
    :param fetched: ``cursor.fetchall``.
    """
    if description is None:
        return []
    return [tuple(row.values() if isinstance(row, Mapping) else row) for row in fetched()]
