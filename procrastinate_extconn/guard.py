"""Whether the next statement on it belongs to a transaction of the caller's."""

from __future__ import annotations

import inspect
import warnings

from .ambient import after_commit
from .exceptions import (
    OutsideTransaction,
    OutsideTransactionWarning,
    SyncAsyncMismatch,
    UnsupportedConnection,
    UnusableConnection,
)
from .fallback import type_name
from .hookspecs import OUTBOX, Description, State
from .options import OutsideMode, unwrap
from .plugins import plugins
from .queries import writes

READY: tuple[State, ...] = ("in_transaction", "idle")
"""The states in which the next statement belongs to a transaction."""

_QUIET = (
    "procrastinate",
    "procrastinate_extconn",
    "contextlib",
    "asyncio",
    "asgiref",
    "concurrent",
)


def require_postgresql(conn: object, description: Description) -> None:
    """Refuse a connection to another database.

    :raises UnsupportedConnection: naming the database.
    """
    if description.dialect not in ("postgresql", OUTBOX):
        raise UnsupportedConnection(
            f"procrastinate-extconn does not support external connections to {description.dialect}: this "
            f"{type_name(type(unwrap(conn)))} is not bound to PostgreSQL. Use one that is bound to the database with "
            "Procrastinate's schema. If your rows are in another database, pass Outbox(connection) of "
            'procrastinate-extconn-outbox: see "Rows in another database" in the documentation.'
        )


def mismatch(subject: object, noun: str, verb: str, *, is_async: bool) -> SyncAsyncMismatch:
    """The refusal of an async object in a sync call, or of a sync one in an async call.

    :param noun: what *subject* is, such as ``"connection"``.
    :param verb: what to do with another one, such as ``"pass"``.
    :param is_async: whether the call is async.
    """
    kinds = "a synchronous", "an asynchronous"
    text = f"{type_name(type(subject))} is {kinds[not is_async]} {noun} in {kinds[is_async]} call"
    if is_async:
        text += ", where it would block the event loop"
        method = "defer(), or the sync method of the same name, from a thread"
    else:
        method = "`await ... .defer_async()`, or the method of the same name that ends in _async"
    return SyncAsyncMismatch(f"{text}: call {method}, or {verb} {kinds[is_async]} {noun}")


def guard(conn: object, description: Description, query: str, mode: OutsideMode) -> None:
    """Refuse a connection that cannot run the query, and a write that would commit by itself.

    :param description: of a connection that is not `READY`.
    :raises UnusableConnection: for a closed connection or a failed transaction.
    :raises OutsideTransaction: in mode ``"error"``, outside a transaction or where that cannot be known.
    """
    state = description.state
    if state == "closed":
        raise UnusableConnection(
            f"this {description.driver} connection ({type_name(type(conn))}) is closed, or not open yet: open one"
        )
    if state == "failed":
        raise UnusableConnection(
            f"the transaction on this {description.driver} connection failed, was lost or was given up before this "
            f"call: roll it back, or roll back to a savepoint from before that, and try again{after_commit(conn)}"
        )
    if mode == "allow" or not writes(query):
        return
    if state == "unknown":
        _outside_unknown(description, mode)
    else:
        fix = f"open one with `{description.begin}`" if description.begin else "open one first"
        text = (
            f"this {description.driver} connection is not in a transaction and commits each statement by itself, so "
            f"what this call changes would stay even if you roll back: {fix}{after_commit(conn)}"
        )
        if mode == "error":
            raise OutsideTransaction(text)
        warn(text + ' (outside_transaction="allow" silences this)')


def _outside_unknown(description: Description, mode: OutsideMode) -> None:
    text = (
        f"the plugin {description.plugin!r} does not tell whether this {description.driver} connection is in a "
        "transaction: make sure that it is"
    )
    if mode == "error":
        raise OutsideTransaction(f'{text}, and pass external(conn, outside_transaction="allow")')
    if plugins().first_time("unknown state", description.plugin):
        warn(text)


def warn(text: str, category: type[Warning] = OutsideTransactionWarning) -> None:
    """Warn at the line of the person's that made the call."""
    level = 1
    frame = inspect.currentframe()
    while (
        frame and frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _QUIET
    ):
        frame = frame.f_back
        level += 1
    warnings.warn(text, category, stacklevel=level)
