"""A driver that stands for yours. It has the DB-API, with ``%s`` in a query, and begins transactions by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg


class Error(Exception):
    """What the server said, and its SQLSTATE."""

    def __init__(self, text: str, sqlstate: str | None) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


class Connection:
    """A connection to PostgreSQL."""

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        self._raw = raw

    @property
    def closed(self) -> bool:
        """Whether nothing can be run any more."""
        return self._raw.closed

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, failed or not."""
        return self._raw.info.transaction_status in (2, 3)

    @property
    def autocommit(self) -> bool:
        """Whether no transaction is begun."""
        return self._raw.autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        self._raw.autocommit = value

    def cursor(self) -> Cursor:
        """Make a cursor."""
        return Cursor(self, self._raw)

    def commit(self) -> None:
        """Commit."""
        self._raw.commit()

    def rollback(self) -> None:
        """Roll back."""
        self._raw.rollback()

    def close(self) -> None:
        """Close, and roll back."""
        self._raw.close()


class Cursor:
    """A cursor."""

    def __init__(self, connection: Connection, raw: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self._raw = raw.cursor()
        self.fetchall = self._raw.fetchall
        self.close = self._raw.close

    @property
    def description(self) -> Any:
        """The columns of the rows, or None if there are no rows."""
        return self._raw.description

    def execute(self, query: str, parameters: Sequence[Any] | None = None) -> None:
        """Run a query."""
        try:
            self._raw.execute(query.encode(), parameters)
        except psycopg.Error as exc:
            raise Error(str(exc), exc.sqlstate) from None


class Pool:
    """Many connections. A plugin has to tell them from one."""


def connect(dsn: str) -> Connection:
    """Connect to a database."""
    return Connection(psycopg.connect(dsn))
