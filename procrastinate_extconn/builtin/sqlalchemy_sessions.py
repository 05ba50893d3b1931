"""SQLAlchemy's sessions: what one has checked out, and what its hooks may do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..exceptions import MEANT, UnusableConnection
from .sqlalchemy_routing import bind_of, is_routed

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import Session


def connection_of(session: Session) -> Connection:
    """The connection to which *session* sends its writes."""
    # A session's connection(), unlike its execute(), leaves the person's own pending rows alone.
    if not is_routed(session):
        return session.connection()
    return session.connection(bind_arguments={"bind": bind_of(session)})


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
