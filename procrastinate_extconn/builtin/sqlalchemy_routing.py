"""The engine that a SQLAlchemy session sends its writes to, and what has to be told that there was a write."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

from ..exceptions import UnsupportedConnection

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import ORMExecuteState, Session

_JOB = "procrastinate_extconn"
"""The key in `Session.info` for the transaction that has a job, and the engine that it is on."""


def is_routed(session: Session) -> bool:
    """Whether *session* may have several engines."""
    from sqlalchemy.orm import Session

    get_bind = session.__class__.get_bind  # of the wrapped object, where it is a proxy
    own = getattr(get_bind, "__func__", get_bind)
    return own is not Session.get_bind or bool(_named(session))


def bind_of(session: Session) -> Engine | Connection:
    """The engine or connection that *session* writes to.

    :raises UnsupportedConnection: where it may be several, so that rows and job would be in two transactions.
    """
    from sqlalchemy import insert, table, update

    if not is_routed(session):
        found = [session.bind]
    else:
        jobs = table("procrastinate_jobs")
        found = [_ask(session, clause=update(jobs)), _ask(session, clause=insert(jobs))]
        found += [_ask_for(session, row) for row in _rows(session)]
        found += [*_named(session), *getattr(session.get_transaction(), "_connections", {})]
    # A session has one connection for each engine.
    binds = {bind.engine: bind for bind in reversed(found) if bind is not None}
    if len(binds) == 1:
        return binds.popitem()[1]
    raise _refusal(
        session,
        "several engines" if binds else "no engine that could be known before there is a row",
    )


def _refusal(session: Session, what: str) -> UnsupportedConnection:
    if _shards(session):
        route = '{"shard_id": ...})`, for the shard of the rows'
    else:
        route = '{"mapper": Row, "clause": update(Row)})`, for the class Row whose rows'
    return UnsupportedConnection(
        f"procrastinate-extconn does not support external connections of type {type(session).__name__} with {what}: "
        f"the job could be in another transaction than your rows. Pass `session.connection(bind_arguments={route} go "
        "with the job"
    )


def _ask(session: Session, **asked: Any) -> Any:
    """What an overridden `get_bind` answers, with any signature; None if it gives no answer."""
    parameters = inspect.signature(session.get_bind).parameters.values()
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
    names = {one.name for one in parameters}
    known = {name: value for name, value in asked.items() if takes_all or name in names}
    try:
        return session.get_bind(**known)
    except Exception:  # noqa: BLE001 - a person's own code, asked for what it may not know
        return None


def _ask_for(session: Session, row: object) -> Any:
    from sqlalchemy import update
    from sqlalchemy.orm import object_mapper

    mapper = object_mapper(row)
    return _ask(session, mapper=mapper, clause=update(mapper.class_), instance=row)


def _rows(session: Session) -> list[object]:
    return [*session.new, *session.dirty, *session.deleted]


def _named(session: Any) -> list[Any]:
    # SQLAlchemy 2.0 keeps the binds to itself.
    binds = getattr(session, "binds", None) or getattr(session, "_Session__binds", None) or {}
    return [*binds.values(), *_shards(session).values()]


def _shards(session: Any) -> dict[Any, Any]:
    shards: dict[Any, Any] = getattr(session, "_ShardedSession__shards", {})
    return shards


def wrote(session: Session, bind: Engine | Connection) -> None:
    """Note that *session* is about to have a job on *bind*."""
    from sqlalchemy import event

    if is_routed(session):
        session.info[_JOB] = session.get_transaction(), bind.engine
        if not event.contains(session, "before_flush", _keep_together):
            event.listen(session, "before_flush", _keep_together)
            event.listen(session, "do_orm_execute", _keep_statement_together)
    zope = sys.modules.get("zope.sqlalchemy")
    # It commits only what it was told to have changed, and looks at ORM changes alone.
    if zope is not None and session in zope.datamanager._SESSION_STATE:
        zope.mark_changed(session)


def _keep_together(session: Session, *_: object) -> None:
    """Refuse rows for another engine than that of a job which is in this transaction already."""
    if _has_job(session):
        for row in _rows(session):
            _require_same(session, _ask_for(session, row))


def _keep_statement_together(state: ORMExecuteState) -> None:
    """Refuse a statement that writes to another engine than that."""
    if (state.is_insert or state.is_update or state.is_delete) and _has_job(state.session):
        _require_same(state.session, _ask(state.session, **state.bind_arguments))


def _has_job(session: Session) -> bool:
    transaction, _ = session.info.get(_JOB, (None, None))
    return transaction is not None and transaction is session.get_transaction()


def _require_same(session: Session, bind: Engine | Connection | None) -> None:
    if bind is not None and bind.engine is not session.info[_JOB][1]:
        raise _refusal(session, "several engines")
