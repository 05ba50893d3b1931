"""What a kind of connection is, how one is run, and what the modules beside this one share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import closing
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

from ..drivers import rows
from ..sync_async import done, finish

__all__ = ["Held", "Kind", "address_of", "dbapi", "done", "run", "tuples", "with_plugin"]

T = TypeVar("T")


class Held(NamedTuple):
    """A connection that somebody holds, in a transaction, with its driver's own way to do things.

    What these functions return is awaited where the connection is asynchronous; `done` does both.
    """

    conn: Any
    """What is passed as ``connection=``."""
    execute: Callable[[str], Any]
    """Runs SQL without parameters and returns the rows as tuples, none where the statement has none."""
    commit: Callable[[], Any]
    rollback: Callable[[], Any]


class Kind(NamedTuple):
    """A way to hold a transaction."""

    id: str
    plugin: str
    """The plugin that takes the connection."""
    requires: tuple[str, ...]
    """The modules that it needs, the plugin's own among them."""
    is_async: bool
    """Whether what is done on the connection is awaited."""
    open: Callable[[str], Any]
    """DSN -> a context manager that yields a `Held`, and closes what it opened; asynchronous if `is_async`."""
    in_greenlet: bool = False
    """Whether the connection is the synchronous inside of an asynchronous one, which works in SQLAlchemy's
    ``run_sync`` alone. `open` is asynchronous then although `is_async` is false; `run` knows."""

    def missing(self) -> list[str]:
        """Those of the modules in `requires` that are not installed."""
        return [name for name in self.requires if find_spec(name) is None]


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
            if not kind.in_greenlet:
                return await body(held)
            from sqlalchemy.util import greenlet_spawn

            return await greenlet_spawn(lambda: finish(body(held)))

    return asyncio.run(main())


def address_of(dsn: str) -> dict[str, Any]:
    """Where *dsn* leads, in the words of most drivers: host, port, user, password, database."""
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.pq import Conninfo

    defaults = {
        option.keyword.decode(): option.val.decode()
        for option in Conninfo.get_defaults()
        if option.val
    }
    found: dict[str, Any] = {"host": "localhost", "password": None, **defaults}
    found.update(conninfo_to_dict(dsn))
    return {
        "host": found["host"],
        "port": int(found["port"]),
        "user": found["user"],
        "password": found["password"],
        "database": found.get("dbname") or found["user"],
    }


def dbapi(conn: Any) -> Held:
    def execute(sql: str) -> list[tuple[Any, ...]]:
        with closing(conn.cursor()) as cursor:
            cursor.execute(sql)
            return tuples(cursor.description, cursor.fetchall)

    return Held(conn, execute, conn.commit, conn.rollback)


def tuples(description: Any, fetched: Callable[[], Any]) -> list[tuple[Any, ...]]:
    """What a cursor fetches, also where somebody's row or cursor factory makes dicts of rows."""
    return [tuple(row.values()) for row in rows(description, fetched)]


def with_plugin(
    name: str, plugin: str, is_async: bool, opened: Callable[[str], Any], *requires: str
) -> Kind:
    """A kind that the distribution of its plugin has to be there for."""
    return Kind(name, plugin, (*requires, f"procrastinate_extconn_{plugin}"), is_async, opened)
