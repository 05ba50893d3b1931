"""A table that is not there: each database says so in its own way."""

from __future__ import annotations

from procrastinate_extconn.diagnosis import read
from procrastinate_extconn.drivers import describe_held
from procrastinate_extconn.exceptions import ExternalConnectionError

from .names import split

NO_TABLE = ("42P01", "42S02")
"""The SQLSTATEs that say so."""
_MYSQL_NO_TABLE = 1146


def is_missing(exc: Exception, table: str) -> bool:
    """Whether *exc* says that there is no *table*."""
    cause, said = read(exc)
    is_no_table = (
        said.sqlstate in NO_TABLE
        or cause.args[:1] == (_MYSQL_NO_TABLE,)
        or "no such table" in str(cause)
    )
    return is_no_table and split(table)[1] in str(cause)


def missing(table: str, conn: object) -> ExternalConnectionError:
    """What to do about it."""
    held = describe_held(conn)
    dialect = held.dialect if held else "..."
    return ExternalConnectionError(
        f"there is no table {table}: `procrastinate-extconn-outbox tables --dialect {dialect}` prints the "
        "statements that create it. Roll back."
    )
