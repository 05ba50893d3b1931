"""The plugin for psycopg2 keeps the contract that every plugin keeps."""

from typing import Any

from psycopg2.extras import RealDictCursor

from procrastinate_extconn.kinds import kinds_of
from procrastinate_extconn.testing import PluginContract, variant

[PSYCOPG2] = kinds_of("psycopg2")


def rows_are_dicts(conn: Any) -> None:
    """Set a cursor factory whose rows are no tuples."""
    conn.cursor_factory = RealDictCursor


class TestPsycopg2(PluginContract):
    """As it is, and with a cursor factory."""

    kinds = (PSYCOPG2, variant(PSYCOPG2, "dicts", rows_are_dicts))
