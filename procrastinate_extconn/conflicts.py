"""A failed statement leaves the caller's transaction usable, and a taken queueing lock can be no failure at all."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeAlias

from procrastinate.exceptions import ConnectorException, UniqueViolation
from procrastinate.manager import QUEUEING_LOCK_CONSTRAINT

from . import wire
from .hookspecs import Rows, State
from .options import OnConflict

Send: TypeAlias = "Callable[[str, dict[str, Any]], Awaitable[Rows]]"

_ATTEMPTS = 10
"""How often to insert again where the job that held the lock has gone meanwhile."""

_WAITING = (
    "SELECT id, queueing_lock FROM procrastinate_jobs "
    "WHERE status = 'todo' "
    "AND queueing_lock = ANY(ARRAY(SELECT json_array_elements_text(CAST(%(locks)s::text AS json)))) FOR SHARE"
)


async def execute(
    send: Send, query: str, arguments: dict[str, Any], on_conflict: OnConflict, state: State
) -> Rows:
    """Run one query inside a savepoint.

    :param send: runs a statement on the connection.
    :param state: the connection's state before it; outside a transaction there is no savepoint.
    """
    jobs = wire.prepare(query).jobs
    if on_conflict == "existing" and jobs is not None:
        return await _defer_or_find(send, query, arguments, jobs, state)
    async with _savepoint(send, state):
        return await send(query, arguments)


@contextlib.asynccontextmanager
async def _savepoint(send: Send, state: State) -> AsyncGenerator[None]:
    if state != "autocommit":
        try:
            await send("SAVEPOINT procrastinate_extconn", {})
        except ConnectorException:
            if state != "unknown":
                raise
            # Nobody could say, and the server has: there is no transaction, so none can be harmed.
            state = "autocommit"
    try:
        yield
    except Exception:  # json_dumps may raise anything
        if state != "autocommit":
            # Where the connection is lost, that is what the caller should hear of, not of the savepoint.
            with contextlib.suppress(ConnectorException):
                await send("ROLLBACK TO SAVEPOINT procrastinate_extconn", {})
                await send("RELEASE SAVEPOINT procrastinate_extconn", {})
        raise
    if state != "autocommit":
        await send("RELEASE SAVEPOINT procrastinate_extconn", {})


async def _defer_or_find(
    send: Send, query: str, arguments: dict[str, Any], parameter: str, state: State
) -> Rows:
    jobs = arguments[parameter]
    # A job without a lock is known by its place. Some pass a UUID for a lock.
    keys = [
        index if (lock := job.queueing_lock) is None else str(lock)
        for index, job in enumerate(jobs)
    ]
    ids: dict[int | str, int] = {}
    attempts = _ATTEMPTS
    while True:
        new: dict[int | str, Any] = {}
        for key, job in zip(keys, jobs, strict=True):
            if key not in ids:
                new.setdefault(key, job)
        try:
            rows = await _insert(send, query, arguments, parameter, list(new.values()), state)
        except UniqueViolation as exc:
            attempts -= 1
            if exc.constraint_name != QUEUEING_LOCK_CONSTRAINT or not attempts:
                raise
            conflict = exc
        else:
            ids.update(zip(new, (row["id"] for row in rows), strict=True))
            return [{"id": ids[key]} for key in keys]
        found = await _lock_waiting(send, [key for key in new if isinstance(key, str)], state)
        if not found and await _snapshot_is_old(send):
            raise conflict
        ids.update(found)


async def _insert(
    send: Send, query: str, arguments: dict[str, Any], parameter: str, jobs: list[Any], state: State
) -> Rows:
    if not jobs:
        return []
    async with _savepoint(send, state):
        return await send(query, {**arguments, parameter: jobs})


async def _lock_waiting(send: Send, locks: list[str], state: State) -> dict[str, int]:
    """The jobs that wait under *locks*, locked until the caller's transaction ends.

    Outside the savepoint of the insert: rolling back to that one would give the row locks up again.
    """
    async with _savepoint(send, state):
        # One text: it has no rule for a lock that reads null.
        rows = await send(_WAITING, {"locks": json.dumps(locks, ensure_ascii=False)})
    return {row["queueing_lock"]: row["id"] for row in rows}


async def _snapshot_is_old(send: Send) -> bool:
    """Whether this transaction would never see the job that is in the way, however often it looks."""
    rows = await send("SELECT current_setting('transaction_isolation') AS isolation", {})
    return rows[0]["isolation"] in ("repeatable read", "serializable")
