"""The ways to hold a connection of psycopg2."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, contextmanager

from procrastinate_extconn.kinds import Held, Kind, dbapi


@contextmanager
def _psycopg2(dsn: str) -> Generator[Held]:
    import psycopg2

    with closing(psycopg2.connect(dsn)) as conn:
        yield dbapi(conn)


KINDS = (Kind("psycopg2", "psycopg2", ("psycopg2",), False, _psycopg2),)
