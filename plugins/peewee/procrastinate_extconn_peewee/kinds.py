"""The ways to hold a connection of Peewee."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from procrastinate_extconn.kinds import Held, Kind, address_of


@contextmanager
def _peewee(dsn: str, prefer_psycopg3: bool) -> Generator[Held]:
    from peewee import PostgresqlDatabase

    database: Any = PostgresqlDatabase(**address_of(dsn), prefer_psycopg3=prefer_psycopg3)
    with database.connection_context():
        database.session_start()

        def execute(sql: str) -> list[tuple[Any, ...]]:
            cursor = database.execute_sql(sql)
            return cursor.fetchall() if cursor.description else []

        try:
            yield Held(database, execute, database.session_commit, database.session_rollback)
        finally:
            database.session_rollback()


KINDS = (
    Kind(
        "peewee-psycopg2",
        "peewee",
        ("peewee", "psycopg2"),
        False,
        partial(_peewee, prefer_psycopg3=False),
    ),
    Kind(
        "peewee-psycopg",
        "peewee",
        ("peewee", "psycopg"),
        False,
        partial(_peewee, prefer_psycopg3=True),
    ),
)
