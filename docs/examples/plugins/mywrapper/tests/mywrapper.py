"""A library that stands for yours. It wraps a connection of psycopg's."""

from __future__ import annotations

from typing import Any

import psycopg


class Session:
    """A connection, and what an application adds to it."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn)
        self.commit = self.connection.commit
        self.rollback = self.connection.rollback
        self.transaction = self.connection.transaction
        self.close = self.connection.close

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def run(self, query: str) -> list[tuple[Any, ...]]:
        """Run a query and return its rows."""
        cursor = self.connection.execute(query.encode())
        return cursor.fetchall() if cursor.description else []
