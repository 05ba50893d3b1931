"""The plugin for psycopg2 keeps the contract that every plugin keeps."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from psycopg2.extras import RealDictCursor
from psycopg2.pool import ThreadedConnectionPool

from procrastinate_extconn.kinds import kinds_of
from procrastinate_extconn.testing import Kind, PluginContract, variant

[PSYCOPG2] = kinds_of("psycopg2")


def rows_are_dicts(conn: Any) -> None:
    """Set a cursor factory whose rows are no tuples."""
    conn.cursor_factory = RealDictCursor


@contextmanager
def pool(dsn: str) -> Generator[ThreadedConnectionPool]:
    """Open a pool."""
    pool = ThreadedConnectionPool(1, 3, dsn)
    yield pool
    pool.closeall()


class TestPsycopg2(PluginContract):
    """As it is, and with a cursor factory."""

    kinds = (PSYCOPG2, variant(PSYCOPG2, "dicts", rows_are_dicts))
    pools = (Kind("psycopg2-pool", "psycopg2", ("psycopg2",), False, pool),)
