"""An external connection with options: `external(conn, ...)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

OnConflict: TypeAlias = Literal["raise", "existing"]
OutsideMode: TypeAlias = Literal["allow", "warn", "error"]


@dataclass(frozen=True, repr=False, eq=False)
class External:
    """What `external` returns: a connection and how to use it. Accepted wherever a connection is."""

    conn: object
    savepoint: bool = False
    on_conflict: OnConflict = "raise"
    outside_transaction: OutsideMode | None = None


def external(
    conn: object,
    *,
    savepoint: bool = False,
    on_conflict: OnConflict = "raise",
    outside_transaction: OutsideMode | None = None,
) -> External:
    """A connection with options, accepted wherever a connection is.

    :param conn: any connection that a plugin takes.
    :param savepoint: a call that fails, because of a taken queueing lock above all, leaves your transaction usable. The
        server undoes that call alone. It costs two round trips more. It covers calls that change something, and
        does nothing outside a transaction.
    :param on_conflict: ``"raise"``, or ``"existing"``: where a job waits under the queueing lock already, return its
        id instead of raising `procrastinate.exceptions.AlreadyEnqueued`. That job is locked until your transaction
        ends, so that it cannot run before your rows are visible. It implies *savepoint*. It reads and locks rows, so
        the role needs SELECT and UPDATE on ``procrastinate_jobs``.
    :param outside_transaction: what to do where the statement would commit by itself: ``"allow"``, ``"warn"`` or
        ``"error"``; None leaves it to `install` or `patch`.
    :raises ValueError: for a value that is none of these.
    """
    _check("on_conflict", on_conflict, get_args(OnConflict))
    check_modes(outside_transaction=outside_transaction)
    if isinstance(conn, External):
        savepoint = savepoint or conn.savepoint
        on_conflict = on_conflict if on_conflict != "raise" else conn.on_conflict
        outside_transaction = outside_transaction or conn.outside_transaction
        conn = conn.conn
    return External(conn, savepoint, on_conflict, outside_transaction)


def unwrap(conn: object) -> object:
    """The connection itself, with or without options."""
    return conn.conn if isinstance(conn, External) else conn


def check_modes(**modes: str | None) -> None:
    """Refuse what is no mode.

    :param modes: the argument's name and its value; None stands for "not set".
    :raises ValueError: naming the modes.
    """
    for name, mode in modes.items():
        if mode is not None:
            _check(name, mode, get_args(OutsideMode))


def _check(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} should be one of {', '.join(map(repr, allowed))}, got {value!r}")
