"""What drivers below SQLAlchemy do not notice by themselves, each with what its own plugin does about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from ..drivers import TIMESTAMPTZ, require_encodable, require_encoding, require_iso
from ..hookspecs import Value

if TYPE_CHECKING:
    from sqlalchemy import Connection

Execute: TypeAlias = Callable[..., Any]


def _psycopg2(connection: Connection, args: Mapping[str, Value]) -> Execute:
    held: Any = connection.connection.driver_connection
    encoding = held.get_parameter_status("client_encoding")
    if encoding != held.encoding:  # it may be only another spelling
        require_encoding(held.encoding, encoding)
    return connection.execute


def _pg8000(connection: Connection, args: Mapping[str, Value]) -> Execute:
    # With half of a statement sent, or half of the rows read, pg8000 would be out of step with the server.
    held: Any = connection.connection.driver_connection
    require_encodable(args, held._client_encoding)
    statuses = held.parameter_statuses
    date_style: str = (
        statuses["DateStyle"]
        if isinstance(statuses, dict)
        else dict(statuses).get(b"DateStyle", b"ISO").decode()
    )
    if date_style.startswith("ISO"):
        return connection.execute
    return partial(_without_instants, connection, held, date_style)


def _without_instants(
    connection: Connection, held: Any, date_style: str, statement: Any, args: dict[str, Any]
) -> Any:
    types, instants = held.pg_types, list[str]()
    held.pg_types = types.copy()
    held.pg_types[TIMESTAMPTZ] = instants.append
    try:
        result = connection.execute(statement, args)
    finally:
        held.pg_types = types
    if instants:
        require_iso(date_style, [TIMESTAMPTZ])
    return result


GUARDS: Mapping[str, Callable[[Any, Mapping[str, Value]], Execute]] = {
    "pg8000": _pg8000,
    "psycopg2": _psycopg2,
}
"""The drivers that need it -> what checks a statement and gives what executes it."""
