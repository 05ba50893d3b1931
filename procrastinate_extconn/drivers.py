"""What driver plugins share: find a driver's classes without importing it, translate placeholders, read rows."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from .classes import Classes, Refusal
from .exceptions import ExternalConnectionError
from .hookspecs import Description, Rows, State, Value
from .plugins import plugins

__all__ = [
    "TIMESTAMPTZ",
    "Classes",
    "Notifications",
    "Refusal",
    "StateSeen",
    "describe_held",
    "execute_on_held",
    "libpq_state",
    "named",
    "numeric",
    "positional",
    "require_encodable",
    "require_encoding",
    "require_iso",
    "rows",
]


class StateSeen(Exception):
    """Raised in ``execute_on_external`` before anything is sent, where a wrapper has just checked its connection out.

    The connection is then described and judged again, and the hook called again, unless it is refused.
    """


_PLACEHOLDER = re.compile(r"%\((\w+)\)s|%%")


@functools.lru_cache(maxsize=512)
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


def rows(description: Iterable[Any] | None, fetched: Callable[[], Sequence[Any]]) -> Rows:
    """The rows of a DB-API cursor as dicts, with any row or cursor factory.

    Write ``rows(cursor.description, cursor.fetchall)``. Each value is what the driver makes of it.

    :param description: ``cursor.description``; None says that the statement has no rows.
    :param fetched: the method ``cursor.fetchall`` itself. It is called only if there are rows.
    """
    if description is None:
        return []
    found = fetched()
    if found and not isinstance(found[0], (tuple, list)) and isinstance(found[0], Mapping):
        made = [dict(row) for row in found]
    else:
        names = [column[0] for column in description]
        made = [dict(zip(names, row, strict=True)) for row in found]
    if made and any(isinstance(value, bytes) for value in made[0].values()):
        # The text of a connection whose encoding is SQL_ASCII: Procrastinate has no other bytes.
        return [{name: _as_text(value) for name, value in row.items()} for row in made]
    return made


def _as_text(value: Any) -> Any:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


TIMESTAMPTZ = 1184
"""The OID of the type of an instant."""

_TRANSACTION: Mapping[int, State] = {2: "in_transaction", 3: "failed"}


def libpq_state(conn: Any, status: int, *, begun: bool = False) -> State:
    """The state of a connection of a driver that stands on libpq.

    :param conn: its ``closed`` and ``autocommit`` are read, each as true or false.
    :param status: libpq's ``PQtransactionStatus``, such as ``conn.info.transaction_status``.
    :param begun: whether the driver's own flag says that a transaction is open. The driver then sends no BEGIN, even if
        the caller has ended that transaction with SQL, and the next statement commits by itself.
    """
    if status in _TRANSACTION:  # Of a connection that is closed or lost, libpq says neither.
        return _TRANSACTION[status]
    if conn.closed:
        return "closed"
    if status == 0:
        return "autocommit" if conn.autocommit or begun else "idle"
    if status == 1:  # A statement is on its way, as in a pipeline, and so may a BEGIN be.
        in_block = getattr(conn, "_num_transactions", 0)  # a block that counts its levels
        return "in_transaction" if in_block or not conn.autocommit else "unknown"
    return "closed"


def require_encodable(args: Mapping[str, Value], encoding: str) -> None:
    """Refuse a text that the connection's encoding lacks, for a driver that would notice too late.

    :param encoding: the connection's, by Python's name for it or by PostgreSQL's.
    :raises UnicodeEncodeError: naming the character. Nothing was sent.
    """
    encoding = _PYTHONS.get(encoding, encoding)
    for value in args.values():
        if isinstance(value, str):
            value.encode(encoding)


def require_encoding(known: str, actual: str | None) -> None:
    """Refuse a session whose client_encoding was set with SQL, for a driver that goes on in the encoding before.

    :param known: the encoding in which the driver writes and reads, by PostgreSQL's name for it.
    :param actual: the session's, as the server has reported it. None is taken for right.
    :raises ExternalConnectionError: if they are not the same. Nothing was sent.
    """
    if actual is not None and _plain_name(known) != _plain_name(actual):
        raise ExternalConnectionError(
            f"client_encoding was set to {actual} with SQL, and the driver still writes {known}: set it by the "
            "driver's own means"
        )


_PYTHONS = {"SQL_ASCII": "ascii", "KOI8R": "koi8-r", "KOI8U": "koi8-u"} | {
    f"WIN{page}": f"cp{page}" for page in (866, 874, *range(1250, 1259))
}
"""Python's names for encodings for which it does not know PostgreSQL's."""


@functools.lru_cache(maxsize=64)
def _plain_name(encoding: str) -> str:
    return re.sub("[^A-Z0-9]", "", encoding.upper())


def require_iso(date_style: str, types: Iterable[int]) -> None:
    """Refuse rows with instants from a session whose DateStyle is not ISO, for a driver that reads no other.

    :param date_style: the session's, as the server has reported it, such as ``"ISO, MDY"``.
    :param types: the type OID of each column, such as ``column[1]`` of a ``cursor.description``.
    :raises ExternalConnectionError: with the statement that sets it.
    """
    if not date_style.startswith("ISO") and TIMESTAMPTZ in types:
        raise ExternalConnectionError(
            f"this session's DateStyle is {date_style!r}, in which the driver does not read instants: run "
            "`SET DateStyle = 'ISO'` first"
        )


def describe_held(conn: object) -> Description | None:
    """What the plugin of another driver says of a connection that yours holds; None if none knows it."""
    return plugins().describe(conn)


def execute_on_held(conn: object, query: str, args: Mapping[str, Value]) -> Rows | Awaitable[Rows]:
    """Let the plugin of another driver run the query on a connection that yours holds.

    :raises UnsupportedConnection: if none takes it.
    """
    result: Rows | Awaitable[Rows] = plugins().execute(conn, query, args)
    return result


class Notifications:
    """The ``notifications`` of a `Listener`, for a driver that calls back."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[str, str] | None] = asyncio.Queue()

    def put(self, channel: str, payload: str) -> None:
        """Add a notification."""
        self._queue.put_nowait((channel, payload))

    def end(self, *_: object) -> None:
        """End the iteration, because the connection is lost or no longer listens."""
        self._queue.put_nowait(None)

    def __aiter__(self) -> Notifications:
        return self

    async def __anext__(self) -> tuple[str, str]:
        notification = await self._queue.get()
        if notification is None:
            raise StopAsyncIteration
        return notification
