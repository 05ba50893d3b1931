"""A driver that stands for yours: ``%s`` in a query, and no transaction but where one was begun."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row


class Connection:
    """A connection to PostgreSQL."""

    def __init__(self, raw: psycopg.AsyncConnection[Any]) -> None:
        self._raw = raw
        self.in_transaction = False

    @property
    def closed(self) -> bool:
        """Whether nothing can be run any more."""
        return self._raw.closed

    async def fetch(self, query: str, params: list[Any] | None = None) -> list[Any]:
        """Run a query and return its rows, named tuples all of them."""
        async with self._raw.cursor(row_factory=namedtuple_row) as cursor:
            await cursor.execute(query.encode(), params)
            return await cursor.fetchall() if cursor.description else []

    async def begin(self) -> None:
        """Begin a transaction."""
        await self.fetch("BEGIN")
        self.in_transaction = True

    async def commit(self) -> None:
        """Commit the transaction."""
        await self.fetch("COMMIT")
        self.in_transaction = False

    async def rollback(self) -> None:
        """Roll the transaction back."""
        await self.fetch("ROLLBACK")
        self.in_transaction = False


@asynccontextmanager
async def connect(dsn: str) -> AsyncGenerator[Connection]:
    """Connect to a database."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as raw:
        yield Connection(raw)


class Pool:
    """Many connections; a plugin has to tell them from one."""
