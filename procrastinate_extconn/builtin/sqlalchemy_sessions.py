"""SQLAlchemy's sessions: to which engine one sends its writes, what it has checked out, and what its hooks may do."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..ambient import MEANT
from ..exceptions import UnsupportedConnection, UnusableConnection

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import Session


def connection_of(session: Session) -> Connection:
    # A session's connection(), unlike its execute(), leaves the person's own pending rows alone.
    if not _chooses(session):
        return session.connection()
    return session.connection(bind_arguments={"bind": bind_of(session)})


def bind_of(session: Session) -> Engine | Connection:
    """The engine or connection to which *session* sends its writes.

    :raises UnsupportedConnection: if it sends them to several, since a job goes to one.
    """
    try:
        binds = _binds(session) if _chooses(session) else [session.get_bind()]
    except Exception:  # noqa: BLE001 - a person's own get_bind() may raise anything
        binds = []
    if binds and all(bind is binds[0] for bind in binds):
        return binds[0]
    found = (
        "to several engines" if binds else "to no engine that could be known before there is a row"
    )
    raise UnsupportedConnection(
        f"this {type(session).__name__} sends its writes {found}, so the job could be in another transaction than your "
        'rows: pass `session.connection(bind_arguments={"mapper": Row})`, for the rows that go with the job'
    )


def _chooses(session: Any) -> bool:
    """Whether *session* may have more than one engine."""
    from sqlalchemy.orm import Session

    get_bind = session.__class__.get_bind  # of the wrapped object, where it is a proxy
    own_get_bind = getattr(get_bind, "__func__", get_bind)
    return bool(_named_binds(session)) or own_get_bind is not Session.get_bind


def _named_binds(session: Any) -> dict[Any, Any]:
    """What ``Session(binds=...)`` was given. SQLAlchemy 2.0 keeps it to itself."""
    return getattr(session, "binds", None) or getattr(session, "_Session__binds", None) or {}


def _binds(session: Any) -> list[Any]:
    """Where *session* sends updates, inserts and the rows that it holds, and where it is in a transaction."""
    from sqlalchemy import insert, inspect, table, update

    rows = table("procrastinate_jobs")
    mappers = {inspect(row).mapper for row in (*session.new, *session.dirty, *session.deleted)}
    found = [_ask(session, None, clause) for clause in (update(rows), insert(rows))]
    found += [_ask(session, mapper, None) for mapper in mappers]
    # A row that was flushed may be forgotten by now, but not the connection that it went to.
    transaction = session.get_nested_transaction() or session.get_transaction()
    known = {bind.engine for bind in found}
    held = [bind for bind in getattr(transaction, "_connections", ()) if bind.engine not in known]
    return [*found, *_named_binds(session).values(), *held]


def _ask(session: Any, mapper: object, clause: object) -> Any:
    """What an own `get_bind()` answers, whichever of SQLAlchemy's arguments it takes."""
    parameters = inspect.signature(session.get_bind).parameters
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    arguments = {"mapper": mapper, "clause": clause}
    return session.get_bind(
        **{name: value for name, value in arguments.items() if takes_all or name in parameters}
    )


def mark_changed(session: Any) -> None:
    """Have zope.sqlalchemy commit: it rolls back a session whose rows it has not seen change."""
    zope = sys.modules.get("zope.sqlalchemy.datamanager")
    if zope is not None and session in zope._SESSION_STATE:
        zope.mark_changed(session)


_ENDED = {
    "COMMITTED": f"is committed already, so that nothing more can be part of it. {MEANT}",
    "PREPARED": "is prepared for its second phase, so that nothing more is part of it: commit or roll it back first",
    "DEACTIVE": f"is rolled back: start a new one after this call. {MEANT}",
    "PROVISIONING_CONNECTION": (
        "is being given its connection, by another task or around this hook: let one task at a time use a session; in "
        "after_begin, pass the hook's own `connection`"
    ),
}


def refuse_ended(session: Session, transaction: Any) -> None:
    """Refuse a session that is between two transactions, as in most of its hooks.

    :raises UnusableConnection: if its transaction has not failed.
    """
    state = getattr(getattr(transaction, "_state", None), "name", None)
    said = _ENDED.get(state or "")
    if state == "COMMITTED" and transaction.nested:
        said = "is in a savepoint that is over: make the call after its block"
    if said and not getattr(transaction, "_rollback_exception", None):
        raise UnusableConnection(f"the transaction of this {type(session).__name__} {said}")


def held_by(session: Session, bind: Engine | Connection) -> Connection | None:
    """The connection that *session* has checked out for *bind*. Asking the session would check one out."""
    held = held_connections(session).get(bind)
    return held[0] if held else None


def held_connections(session: Session) -> Mapping[Any, Any]:
    """Each connection that *session* has checked out, by itself and by its engine."""
    transaction = session.get_nested_transaction() or session.get_transaction()
    return getattr(transaction, "_connections", {})
