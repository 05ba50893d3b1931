"""What driver plugins share: find a driver's classes without importing it, translate placeholders, read rows."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from .exceptions import UnsupportedConnection
from .hookspecs import Description, Rows, State, Value

T = TypeVar("T")

_PLACEHOLDER = re.compile(r"%\((\w+)\)s|%%")
_REMEMBERED = 512


class Refusal:
    """Marks a class that is mistaken for a connection, with the one line that gets a connection from it.

    :param advice: that line, such as ``async with pool.acquire() as conn: ...``.
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice


class Classes(Generic[T]):
    """A driver's classes, by their dotted names, and what a plugin wants to know of each.

    Looked up in `sys.modules` alone: a driver that was never imported has no connections, so saying no costs
    nothing. Subclasses count, and so do proxies that put the wrapped object's class in their ``__class__``.

    :param classes: dotted name -> value; the first match wins. A `Refusal` makes `find` raise.
    """

    def __init__(self, classes: Mapping[str, T | Refusal]) -> None:
        self._classes = classes
        self._found: dict[tuple[type, type], tuple[str, T | Refusal] | None] = {}

    def find(self, conn: object) -> T | None:
        """What stands here for the class of *conn*, or None.

        :raises UnsupportedConnection: where a `Refusal` stands for it.
        """
        key = type(conn), conn.__class__
        try:
            found = self._found[key]
        except KeyError:
            found = self._search(key)
        if found is None:
            return None
        name, value = found
        if isinstance(value, Refusal):
            raise UnsupportedConnection(
                f"procrastinate-extconn does not support external connections of type {name}: that is not a "
                f"connection. Get one from it: `{value.advice}`"
            )
        return value

    def _search(self, key: tuple[type, type]) -> tuple[str, T | Refusal] | None:
        found = None
        for name, value in self._classes.items():
            module, _, attribute = name.rpartition(".")
            cls = getattr(sys.modules.get(module), attribute, None)
            # issubclass, not isinstance: a metaclass may answer isinstance() by the type, which a proxy's is not.
            if isinstance(cls, type) and any(issubclass(one, cls) for one in key):
                found = name, value
                break
        if len(self._found) >= _REMEMBERED:
            self._found.clear()
        self._found[key] = found
        return found


@functools.lru_cache(maxsize=_REMEMBERED)
def _translated(
    query: str, style: Callable[[str, int], str], repeat: bool
) -> tuple[str, tuple[str, ...]]:
    names: list[str] = []

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return "%%" if style is _format else "%"
        if repeat or name not in names:
            names.append(name)
        return style(name, names.index(name) + 1)

    return _PLACEHOLDER.sub(replace, query), tuple(names)


def _format(name: str, index: int) -> str:
    return "%s"


def _numeric(name: str, index: int) -> str:
    return f"${index}"


def _named(name: str, index: int) -> str:
    return f":{name}"


def numeric(query: str) -> tuple[str, tuple[str, ...]]:
    """*query* with ``$1``, ``$2``, ... and the names of the values to pass, in that order.

    >>> numeric("SELECT %(a)s, %(b)s, %(a)s")
    ('SELECT $1, $2, $1', ('a', 'b'))
    """
    return _translated(query, _numeric, False)


def positional(query: str) -> tuple[str, tuple[str, ...]]:
    """*query* with ``%s`` and the names of the values to pass, one for each placeholder.

    >>> positional("SELECT %(a)s, %(b)s, %(a)s")
    ('SELECT %s, %s, %s', ('a', 'b', 'a'))
    """
    return _translated(query, _format, True)


def named(query: str) -> str:
    """*query* with ``:name``. A placeholder is never followed by ``::``, as the core casts with ``CAST``.

    >>> named("SELECT %(a)s, 5 %% 3")
    'SELECT :a, 5 % 3'
    """
    return _translated(query, _named, False)[0]


def rows(description: Iterable[Any] | None, fetched: Callable[[], Iterable[Any]]) -> Rows:
    """The rows of a DB-API cursor as dicts, whatever its row or cursor factory makes of a row.

    :param description: ``cursor.description``; None says that the statement has no rows.
    :param fetched: ``cursor.fetchall``.
    """
    if description is None:
        return []
    names = [column[0] for column in description]
    return [
        dict(row) if isinstance(row, Mapping) else dict(zip(names, row, strict=True))
        for row in fetched()
    ]


_TRANSACTION: Mapping[int, State] = {2: "in_transaction", 3: "failed"}


def libpq_state(conn: Any, status: int) -> State:
    """The state of a psycopg or psycopg2 connection.

    :param conn: anything with their ``closed`` and ``autocommit``.
    :param status: libpq's ``PQtransactionStatus``, such as ``conn.info.transaction_status``.
    """
    if status in _TRANSACTION:  # Of a connection that is closed or lost, libpq says neither.
        return _TRANSACTION[status]
    if conn.closed:
        return "closed"
    if status == 0:
        return "autocommit" if conn.autocommit else "idle"
    if status == 1:  # A statement is on its way, as in a pipeline, and so may a BEGIN be.
        in_block = getattr(conn, "_num_transactions", 0)  # psycopg's `transaction()`
        return "in_transaction" if in_block or not conn.autocommit else "unknown"
    return "closed"


def require_postgresql(conn: object, dialect: str) -> None:
    """Refuse a wrapper's connection that leads to another database.

    :param dialect: what the wrapper calls its database.
    :raises UnsupportedConnection: unless that is PostgreSQL.
    """
    if dialect not in ("postgres", "postgresql"):
        raise UnsupportedConnection(
            f"procrastinate-extconn does not support external connections to {dialect}: this {type(conn).__name__} "
            "is not bound to PostgreSQL. Use one that is bound to the database where Procrastinate's schema is."
        )


def describe_held(conn: object) -> Description | None:
    """What the plugin of another driver says of a connection that yours holds; None if none knows it."""
    from .plugins import plugins

    return plugins().describe(conn)


def execute_on_held(conn: object, query: str, args: Mapping[str, Value]) -> Rows | Awaitable[Rows]:
    """Let the plugin of another driver run the query on a connection that yours holds.

    :raises UnsupportedConnection: if none takes it.
    """
    from .plugins import plugins

    result: Rows | Awaitable[Rows] = plugins().execute(conn, query, args)
    return result
