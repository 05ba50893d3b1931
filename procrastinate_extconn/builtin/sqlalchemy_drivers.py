"""What drivers below SQLAlchemy do not notice by themselves, each with what its own plugin does about it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ..drivers import TIMESTAMPTZ, require_encodable, require_encoding, require_iso
from ..hookspecs import Value

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection


def guarded(
    connection: Connection, args: Mapping[str, Value]
) -> AbstractContextManager[Callable[[Any], None]]:
    """For the length of one statement, refuse what the driver would get wrong.

    :returns: a context manager that yields what takes the ``description`` of the rows.
    """
    driver = connection.dialect.driver
    if driver not in ("pg8000", "psycopg2"):
        return nullcontext(lambda description: None)
    held: Any = connection.connection.driver_connection
    if driver == "pg8000":
        return _pg8000(held, args)
    require_encoding(held.encoding, held.get_parameter_status("client_encoding"))
    return nullcontext(lambda description: None)


@contextmanager
def _pg8000(held: Any, args: Mapping[str, Value]) -> Generator[Callable[[Any], None]]:
    # With half of a statement sent, or half of the rows read, pg8000 would be out of step with the server.
    require_encodable(args, held._client_encoding)
    statuses, types = held.parameter_statuses, held.pg_types
    date_style = (
        statuses["DateStyle"]
        if isinstance(statuses, dict)
        else dict(statuses).get(b"DateStyle", b"ISO").decode()
    )
    if not date_style.startswith("ISO"):
        held.pg_types = types.copy()
        held.pg_types[TIMESTAMPTZ] = str
    try:
        yield lambda description: require_iso(date_style, [column[1] for column in description])
    finally:
        held.pg_types = types
