"""mywrapper: `mywrapper.Session`, whose connection is psycopg's."""

from __future__ import annotations

from collections.abc import Awaitable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from procrastinate_extconn import Description, hookimpl
from procrastinate_extconn.drivers import Classes, describe_held, execute_on_held
from procrastinate_extconn.hookspecs import Rows, Value
from procrastinate_extconn.kinds import Held, Kind

_SESSION = Classes[bool]({"mywrapper.Session": True})
_BEGIN = "with session.transaction(): ..."


@hookimpl
def describe_external(conn: Any) -> Description | None:
    if not _SESSION.find(conn):
        return None
    held = describe_held(conn.connection)
    return held and held._replace(plugin="mywrapper", begin=_BEGIN)


@hookimpl
def execute_on_external(
    conn: Any, query: str, args: Mapping[str, Value]
) -> Rows | Awaitable[Rows] | None:
    return execute_on_held(conn.connection, query, args) if _SESSION.find(conn) else None


@hookimpl
def external_kinds() -> list[Kind]:
    return [Kind("mywrapper", "mywrapper", ("mywrapper",), False, _open)]


@contextmanager
def _open(dsn: str) -> Generator[Held]:
    import mywrapper

    with mywrapper.Session(dsn) as session:
        yield Held(session, session.run, session.commit, session.rollback)
