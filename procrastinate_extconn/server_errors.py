"""A driver's error becomes Procrastinate's, with a reason that a person can act on.

Our text has the SQLSTATE and the primary message. DETAIL and CONTEXT quote values, so they stay in the driver's error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from procrastinate.exceptions import ConnectorException, UniqueViolation
from procrastinate.manager import QUEUEING_LOCK_CONSTRAINT

from .diagnosis import chain, read
from .exceptions import UnusableConnection
from .hookspecs import State

# In some languages what opens a quotation is what closes it in others.
_QUOTES = re.compile(r"[\"“”„«»].*[\"“”„«»]|0x[0-9a-f]{2}(?: 0x[0-9a-f]{2})*", re.DOTALL)

_NO_SCHEMA = (
    "Procrastinate's schema is not on the connection's search_path: check `SHOW search_path` and whether this is the "
    "database where Procrastinate lives. If it is, run `procrastinate --app=your.app schema --apply`, with the path of "
    "your own app."
)
_OTHER_SCHEMA = (
    "Procrastinate's schema there may be of another version than this Procrastinate: apply its migrations. It may also "
    "be only a part that is on the search_path, or a type that the driver has chosen for a parameter."
)
_NOT_OURS = (
    "That is no name of Procrastinate's: a trigger on its tables may ask for it, or the driver may have chosen another "
    "type for a parameter."
)
_STANDBY = "The server is a standby, which takes no writes: use a connection to the primary."
_NOT_JSON = "The job's arguments are not JSON that PostgreSQL reads: NaN, Infinity and half a surrogate pair are not."
_UNDECODABLE = (
    "The server's answer is no text in the connection's encoding. The statement may have run: roll back, and close the "
    "connection, since some drivers are out of step with the server from then on."
)
_IN_USE = "The connection is in use by another task or thread: give each its own, or take turns."
_TIMED_OUT = (
    "It gave up waiting. If a pool was asked, all its connections were in use, or none could be opened: give them back "
    "sooner, or raise the pool's size or timeout."
)
_PREPARED = (
    "Behind PgBouncer the next transaction may be on another server connection: turn the driver's prepared statements "
    'off, see "Defer a job behind PgBouncer" in the documentation.'
)
_ADVICE = {
    "25006": (
        "The transaction is read-only: it was begun so, default_transaction_read_only says so, or the server is a "
        "standby. Use a transaction that may write, on the primary."
    ),
    "25P02": "The transaction has failed before this call: roll it back, or roll back to a savepoint, and try again.",
    "3F000": _NO_SCHEMA,
    "40001": "Roll back, and run the whole transaction again.",
    "40P01": "The transaction was chosen to end a deadlock: roll back, and run the whole transaction again.",
    "42501": (
        "The connection's role lacks a privilege, or a row-level security policy refuses the row: grant the one, or "
        "change the other."
    ),
    "42704": _OTHER_SCHEMA,
    "42883": _OTHER_SCHEMA,
    "42P01": _NO_SCHEMA,
    "53300": "The server has no connection slot left.",
    "26000": _PREPARED,
    "42P05": _PREPARED,
    "22P05": "PostgreSQL cannot store this text: a NUL character, or one that the database's encoding lacks.",
    "22021": "PostgreSQL cannot store this text: a NUL character, or one that the database's encoding lacks.",
    "54001": "The arguments are nested too deeply for the server's max_stack_depth.",
    "54000": "The arguments are larger than PostgreSQL can store.",
}
_CONCURRENT = (
    "operation is in progress",
    "concurrent operations",
    "provisioning a new connection",
    "another coroutine is already waiting",
)
_UNUSABLE = frozenset({"25P02", "57P01", "57P02", "57P03"})
_TOLD_BY_ADVICE = frozenset({"25P02", "40001", "40P01"})
_FAILED = "Your transaction has failed: roll it back (external(conn, savepoint=True) keeps it)."
_FAILED_IF_ANY = "If there was a transaction, it has failed: roll it back (external(conn, savepoint=True) keeps it)."
_GONE = "The connection is gone, and with it your transaction: open a new one and run it again."
_KEPT = "Your transaction is as it was before."


class ServerError(NamedTuple):
    """The driver's exception, and what the server said."""

    cause: BaseException
    sqlstate: str | None
    message: str | None
    detail: str | None
    constraint: str | None


def translate(
    exc: Exception,
    conn: object,
    *,
    driver: str,
    state: State = "unknown",
    kept: bool = False,
    locks: Iterable[str] = (),
) -> ConnectorException:
    """Procrastinate's exception for the driver's *exc*, with the driver's error as its cause.

    :param conn: what the statement ran on.
    :param driver: what was asked, for the text.
    :param state: the connection's state after the error.
    :param kept: whether the server has undone the failed statement alone.
    :param locks: the queueing locks that were sent.
    """
    cause, said = read(exc)
    error = ServerError(cause, *said)
    fate = _fate(error, state, kept)
    text = " ".join(filter(None, (_said(error, driver), _advice(error, conn), fate)))
    is_taken = error.constraint == QUEUEING_LOCK_CONSTRAINT and error.sqlstate in ("23505", None)
    result: ConnectorException
    if is_taken or error.sqlstate == "23505":
        lock = _lock(error, list(locks)) if is_taken else None
        result = UniqueViolation(text, constraint_name=error.constraint, queueing_lock=lock)
    elif state == "closed" or error.sqlstate in _UNUSABLE or (error.sqlstate or "")[:2] == "08":
        result = UnusableConnection(text)
    else:
        result = ConnectorException(text)
    result.__cause__ = error.cause
    return result


def _fate(error: ServerError, state: State, kept: bool) -> str | None:
    """What has become of the caller's transaction."""
    if state == "closed":
        return _GONE
    if state in ("idle", "autocommit") or error.sqlstate in _TOLD_BY_ADVICE:
        return None
    # Drivers encode before they send. A wrapper may give the transaction up all the same.
    if kept or (state != "failed" and _is_unencodable(error)):
        return _KEPT
    if state == "unknown":
        return _FAILED_IF_ANY if error.message else None
    # Not every driver notices: one may still say that it is in a transaction.
    return _FAILED if state == "failed" or error.message else None


def _is_unencodable(error: ServerError) -> bool:
    return any(isinstance(one, UnicodeEncodeError) for one in chain(error.cause))


def _said(error: ServerError, driver: str) -> str:
    if error.sqlstate is None and error.message is None:
        return f"{driver} raised {type(error.cause).__name__} (see the cause)."
    sqlstate = f" (SQLSTATE {error.sqlstate})" if error.sqlstate else ""
    return f"{driver}: {_harmless(error)}{sqlstate}."


def _advice(error: ServerError, conn: object) -> str | None:
    if _is_unencodable(error):
        return "The text cannot be encoded for this database."
    if any(isinstance(one, UnicodeDecodeError) for one in chain(error.cause)):
        return _UNDECODABLE
    if error.sqlstate is None:
        if any("Timeout" in type(one).__name__ for one in chain(error.cause)):
            return _TIMED_OUT
        said = "" if error.message else str(error.cause)
        return _IN_USE if any(words in said for words in _CONCURRENT) else None
    if error.sqlstate == "22P02" and "json" in (error.message or ""):
        return _NOT_JSON
    if error.sqlstate == "25006" and _is_standby(conn):
        return _STANDBY
    advice = _ADVICE.get(error.sqlstate)
    if advice in (_NO_SCHEMA, _OTHER_SCHEMA):
        return f"{_where(conn)}{advice if 'procrastinate' in (error.message or '') else _NOT_OURS}"
    return advice


def _is_standby(conn: object) -> bool:
    """Whether the server has told so: PostgreSQL 14 and later do, and libpq keeps it."""
    try:
        return bool(conn.info.parameter_status("in_hot_standby") == "on")  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - it cannot tell
        return False


def _where(conn: object) -> str:
    """Which database and user, where the object knows: it has an ``info`` or the URL of an engine."""
    info = getattr(conn, "info", None)
    database, user = getattr(info, "dbname", None), getattr(info, "user", None)
    engine = getattr(conn, "engine", None) or getattr(conn, "bind", None)
    url = getattr(engine, "url", None)
    if url is not None:
        database, user = url.database, url.username
    return f"This is database {database!r}, as {user!r}. " if database else ""


# A trigger that somebody wrote may RAISE anything. These are the classes that PostgreSQL itself has words for, and
# Procrastinate's own words. P0 is what RAISE gives by itself; 38 and 39 are functions in other languages.
_OWN_CLASS = re.compile(r"0[0-9A-F]|2[0-8BDF]|3[4BDF]|4[024]|5[3-8]|F0|72|XX")
_OWN_WORDS = re.compile(r"Job was not found or [\w\" ]+ \(job id: \d+\)")


def _harmless(error: ServerError) -> str:
    if not _is_servers_own(error):
        return "a trigger or a function raised an error (see the cause)"
    # A data exception (class 22) quotes the value in its primary message, or the bytes of one of its characters.
    message = error.message or type(error.cause).__name__
    if error.sqlstate is None or error.sqlstate.startswith("22"):
        message = _QUOTES.sub('"…"', message)
    return message.rstrip(".")


def _is_servers_own(error: ServerError) -> bool:
    if error.sqlstate is None or _OWN_WORDS.fullmatch(error.message or ""):
        return True
    # Most drivers tell where in the server's source the error was raised.
    cause: Any = error.cause
    source = getattr(getattr(cause, "diag", None), "source_function", None)
    source = source or getattr(cause, "server_source_function", None)
    if cause.args and isinstance(cause.args[0], Mapping):  # the protocol's one-letter fields
        source = cause.args[0].get("R")
    return source != "exec_stmt_raise" and _OWN_CLASS.match(error.sqlstate) is not None


def _lock(error: ServerError, locks: list[str]) -> str | None:
    if len(set(locks)) == 1:
        return locks[0]
    detail = error.detail or str(error.cause)
    # The longest first: a lock may be the end of another.
    return max((lock for lock in locks if f"=({lock})" in detail), key=len, default=None)
