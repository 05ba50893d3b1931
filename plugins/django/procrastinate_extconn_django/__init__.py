"""Django: `django.db.connections[alias]` and the `django.db.connection` proxy, on psycopg 3 and on psycopg2.

Always through Django's own cursor: it connects at the first statement, and execute wrappers, query logging and the
bookkeeping of ``atomic()`` stand there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timezone
from typing import Any

from procrastinate_extconn.drivers import (
    Classes,
    Refusal,
    libpq_state,
    positional,
    require_encoding,
    rows,
)
from procrastinate_extconn.exceptions import UnsupportedConnection
from procrastinate_extconn.hookspecs import Description, Kind, Rows, State, Value, hookimpl

_CONNECTION = Classes[bool](
    {
        "django.db.backends.base.base.BaseDatabaseWrapper": True,
        "django.utils.connection.ConnectionProxy": True,
        "django.db.utils.ConnectionHandler": Refusal('connections["default"]'),
        "django.db.backends.utils.CursorWrapper": Refusal("cursor.db"),
        "django.db.transaction.Atomic": Refusal("from django.db import connection"),
    }
)

_PSYCOPG2_BEGUN = 2
"""psycopg2's STATUS_BEGIN."""


@hookimpl
def describe_external(conn: Any) -> Description | None:
    if not _CONNECTION.find(conn):
        return None
    if not hasattr(conn, "vendor"):  # Django has other proxies of this class, such as its cache.
        raise UnsupportedConnection(
            "procrastinate-extconn does not support external connections of type ConnectionProxy that lead to no "
            "database: pass django.db.connection, or django.db.connections[alias]"
        )
    using = "" if conn.alias == "default" else f"using={conn.alias!r}"
    begin = f"with transaction.atomic({using}): ..."
    return Description(conn.Database.__name__, "django", False, _state(conn), begin, conn.vendor)


def _state(conn: Any) -> State:
    if conn.vendor != "postgresql":
        return _state_by_django(conn)
    held = conn.connection
    if conn.closed_in_transaction:
        return "closed"
    if conn.needs_rollback:
        return "failed"
    if held is None:  # Django connects at the first statement.
        return "autocommit" if conn.settings_dict["AUTOCOMMIT"] else "idle"
    if (
        held.closed
    ):  # Django finds that with the next statement, and connects anew for the next request.
        return _state_by_django(conn)
    # psycopg2 does not notice a COMMIT that was sent as SQL, and sends no BEGIN after it.
    begun = getattr(held, "status", None) == _PSYCOPG2_BEGUN
    state = libpq_state(held, held.info.transaction_status, begun=begun)
    return "in_transaction" if conn.in_atomic_block and state == "idle" else state


def _state_by_django(conn: Any) -> State:
    if conn.closed_in_transaction:
        return "closed"
    if conn.needs_rollback:
        return "failed"
    if conn.in_atomic_block:
        return "in_transaction"
    autocommit = conn.settings_dict["AUTOCOMMIT"] if conn.connection is None else conn.autocommit
    return "autocommit" if autocommit else "idle"


@hookimpl
def execute_on_external(conn: Any, query: str, args: Mapping[str, Value]) -> Rows | None:
    if not _CONNECTION.find(conn):
        return None
    if conn.in_atomic_block and query.startswith("ROLLBACK TO"):
        conn.set_rollback(False)  # Django would refuse even that.
    # By position, as Django's own statements: execute wrappers prepend values of their own.
    query, names = positional(query)
    with conn.cursor() as cursor:
        if conn.vendor == "postgresql":
            _read_instants(conn, cursor)
        try:
            cursor.execute(query, [args[name] for name in names])
        except Exception:
            # As Django's own statements do, so that an atomic block does not commit what the server has given up.
            if conn.in_atomic_block:
                conn.set_rollback(True)
            raise
        return rows(cursor.description, cursor.fetchall)


def _read_instants(conn: Any, cursor: Any) -> None:
    """Let *cursor*, which is ours, read instants with the session's time zone: Django puts its own, or none, there."""
    if conn.Database.__name__ == "psycopg":
        from psycopg.types.datetime import TimestamptzLoader

        cursor.adapters.register_loader("timestamptz", TimestamptzLoader)
        return
    held = conn.connection
    require_encoding(held.encoding, held.get_parameter_status("client_encoding"))
    cursor.cursor.tzinfo_factory = timezone


@hookimpl
def external_kinds() -> Sequence[Kind]:
    from .kinds import KINDS

    return KINDS
