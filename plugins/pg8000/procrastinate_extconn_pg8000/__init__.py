"""pg8000: the connections of `pg8000.dbapi`, of `pg8000.native` and of `pg8000.connect`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from procrastinate_extconn.drivers import (
    TIMESTAMPTZ,
    Classes,
    Refusal,
    named,
    numeric,
    positional,
    require_encodable,
    require_iso,
    rows,
)
from procrastinate_extconn.hookspecs import Description, Kind, Rows, State, Value, hookimpl

_IS_NATIVE = Classes[bool](
    {
        "pg8000.native.Connection": True,
        "pg8000.dbapi.Connection": False,
        "pg8000.legacy.Connection": False,
        "pg8000.dbapi.Cursor": Refusal("cursor.connection"),
        "pg8000.legacy.Cursor": Refusal("cursor.connection"),
        "pg8000.native.PreparedStatement": Refusal("statement.con"),
    }
)
_QUOTED = re.compile(r"'[^']*'")
_STATES: Mapping[bytes, State] = {b"T": "in_transaction", b"E": "failed"}


@hookimpl
def describe_external(conn: Any) -> Description | None:
    is_native = _IS_NATIVE.find(conn)
    if is_native is None:
        return None
    begin = "conn.run('START TRANSACTION')" if is_native else "conn.autocommit = False"
    return Description("pg8000", "pg8000", False, _state(conn, is_native), begin)


def _state(conn: Any, is_native: bool) -> State:
    # pg8000 tells nobody, but it keeps the status byte of the server's last ReadyForQuery.
    if conn._usock is None:
        return "closed"
    outside: State = "autocommit" if is_native or conn.autocommit else "idle"
    return _STATES.get(conn._transaction_status, outside)


@hookimpl
def execute_on_external(conn: Any, query: str, args: Mapping[str, Value]) -> Rows | None:
    is_native = _IS_NATIVE.find(conn)
    if is_native is None:
        return None
    # Otherwise pg8000 notices with half of the statement sent, and takes each answer for that to the statement before.
    require_encodable(args, conn._client_encoding)
    run = _run if is_native else _execute
    date_style = _date_style(conn)
    if date_style.startswith("ISO"):
        return run(conn, query, args)
    # pg8000 would guess at an instant, and a guess that fails leaves half of the rows unread.
    types, instants = conn.pg_types, list[str]()
    conn.pg_types = types.copy()
    conn.pg_types[TIMESTAMPTZ] = instants.append
    try:
        found = run(conn, query, args)
    finally:
        conn.pg_types = types
    if instants:
        require_iso(date_style, [TIMESTAMPTZ])
    return found


def _date_style(conn: Any) -> str:
    statuses = conn.parameter_statuses
    if isinstance(statuses, dict):
        return str(statuses["DateStyle"])
    return str(dict(statuses).get(b"DateStyle", b"ISO").decode())  # up to pg8000 1.30


def _run(conn: Any, query: str, args: Mapping[str, Value]) -> Rows:
    fetched = conn.run(named(query), **args)
    names = [column["name"] for column in conn.columns or ()]
    return [dict(zip(names, row, strict=True)) for row in fetched or ()]


def _execute(conn: Any, query: str, args: Mapping[str, Value]) -> Rows:
    cursor = conn.cursor()
    cursor.execute(*_statement(_paramstyle(cursor), query, args))
    return rows(cursor.description, cursor.fetchall)


def _paramstyle(cursor: Any) -> str:
    style: str = getattr(cursor, "paramstyle", None) or sys.modules["pg8000.dbapi"].paramstyle
    return style


def _statement(
    style: str, query: str, args: Mapping[str, Value]
) -> tuple[str, Sequence[Value] | Mapping[str, Value]]:
    if args and style == "named":
        return named(query), args
    if args and style in ("format", "pyformat"):
        query, names = positional(query)
        # Between quotes pg8000 leaves a %% alone.
        query = _QUOTED.sub(lambda quoted: quoted[0].replace("%%", "%"), query)
    else:  # In "qmark" and "numeric" a $1 passes, and without values the text goes as it is.
        query, names = numeric(query)
    return query, [args[name] for name in names]


@hookimpl
def external_kinds() -> Sequence[Kind]:
    from .kinds import KINDS

    return KINDS
