"""A DSN, read as libpq reads it."""

from __future__ import annotations

from typing import Any


def address_of(dsn: str) -> dict[str, Any]:
    """The parts of *dsn* by the names that most drivers use: ``host, port, user, password, database``.

    The port is an int. What the DSN leaves out is libpq's default, and the password may be None.
    """
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
