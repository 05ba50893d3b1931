"""A plugin that is right, for connections that each wrap one of psycopg's. Faults are derived from it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from typing import Any, ClassVar

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from procrastinate_extconn.builtin import psycopg as right
from procrastinate_extconn.builtin import psycopg_kinds
from procrastinate_extconn.hookspecs import Description, hookimpl
from procrastinate_extconn.testing import Held, Kind


class Connection:
    """What a driver of nobody's makes."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    def cursor(self) -> Any:
        """Make a cursor, which is no connection."""
        return Cursor(self.raw)

    @property
    def autocommit(self) -> bool:
        """Whether each statement is committed by itself."""
        return bool(self.raw.autocommit)

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        self.raw.autocommit = value

    @property
    def row_factory(self) -> Any:
        """What makes rows for the connection's owner."""
        return self.raw.row_factory

    def set_autocommit(self, value: bool) -> Any:
        """Set it on an async connection."""
        return self.raw.set_autocommit(value)

    def close(self) -> Any:
        """Close the connection."""
        return self.raw.close()


class Cursor:
    """What runs statements, and looks like a connection to somebody who does not look well."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw


class Fault:
    """A plugin whose subclasses go wrong."""

    clause: ClassVar[str]
    """The clause that catches it."""
    why: ClassVar[str]
    """What the clause says of it."""
    is_async: ClassVar[bool] = False
    connection: ClassVar[type[Connection]]
    plugin: ClassVar[Fault]

    def __init_subclass__(cls) -> None:
        cls.connection = type("Connection", (Connection,), {})
        cls.plugin = cls()

    def is_mine(self, conn: Any) -> bool:
        """Claim by the class of a connection."""
        return isinstance(conn, self.connection)

    @hookimpl
    def describe_external(self, conn: Any) -> Description | None:
        return self.describe(conn.raw) if self.is_mine(conn) else None

    @hookimpl
    def execute_on_external(self, conn: Any, query: str, args: Mapping[str, Any]) -> Any:
        return self.execute(conn.raw, query, dict(args)) if self.is_mine(conn) else None

    def describe(self, raw: Any) -> Description:
        """Describe psycopg's connection."""
        description = right.describe_external(raw)
        assert description is not None
        return description._replace(plugin=type(self).__name__)

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        """Run the query on psycopg's connection."""
        return right.execute_on_external(raw, query, args)

    @classmethod
    def kind(cls) -> Kind:
        """How its connections are opened."""
        opened = partial(_open_async if cls.is_async else _open, connection=cls.connection)
        return Kind(cls.__name__, cls.__name__, (), cls.is_async, opened)


class Right(Fault):
    """Shows that it is not the harness that fails."""


class RightAsync(Fault):
    """Shows the same for async connections."""

    is_async = True


def faults(base: type[Fault]) -> list[type[Fault]]:
    """The classes that go wrong in a way of their own."""
    found = [base] if "clause" in vars(base) else []
    return found + [one for cls in base.__subclasses__() for one in faults(cls)]


@contextmanager
def _open(dsn: str, connection: type[Connection]) -> Generator[Held]:
    with closing(psycopg.connect(dsn)) as raw:
        held: Any = psycopg_kinds.dbapi(raw)
        yield held._replace(conn=connection(raw))


@asynccontextmanager
async def _open_async(dsn: str, connection: type[Connection]) -> AsyncGenerator[Held]:
    raw = await psycopg.AsyncConnection.connect(dsn)
    try:
        yield psycopg_kinds._psycopg_held(raw)._replace(conn=connection(raw))
    finally:
        await raw.close()


class Pool:
    """A pool of such connections."""

    def __init__(self, raw: Any, dsn: str) -> None:
        self.raw = raw
        self.dsn = dsn


@contextmanager
def open_pool(dsn: str, pool: type[Pool]) -> Generator[Pool]:
    """Open a pool."""
    with ConnectionPool(dsn, min_size=1, max_size=2, timeout=2, open=True) as raw:
        yield pool(raw, dsn)


@asynccontextmanager
async def open_async_pool(dsn: str, pool: type[Pool]) -> AsyncGenerator[Pool]:
    """Open an async pool."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=2, timeout=2, open=False) as raw:
        yield pool(raw, dsn)
