"""The queue's side of the relay: rows become jobs, each row once.

The fence makes that safe. A relay reads the outbox only while it holds the shared form of one advisory lock, in the
transaction that remembers the rows' ids. An id is forgotten only under the exclusive form, once its row is gone. So
nobody can still forward a row that was read before it was deleted. The lock is one for all outboxes of a queue, so
that no name or address of an outbox has to be right.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence
from typing import NamedTuple

from procrastinate import sql
from procrastinate.exceptions import ConnectorException, UniqueViolation
from procrastinate.manager import QUEUEING_LOCK_CONSTRAINT
from procrastinate.types import JobToDefer

from procrastinate_extconn import wire
from procrastinate_extconn.diagnosis import read
from procrastinate_extconn.exceptions import ExternalConnectionError

from .content import Job, UnreadableRow, read_jobs, require_uuid
from .lending import Lent, may_pass
from .names import INBOX
from .queues import QUEUE
from .source import Row
from .tables import inbox_ddl

logger: logging.Logger = logging.getLogger(__name__)

_KEY = int.from_bytes(b"procrast", "big")
_SHARED = "SELECT CAST(pg_catalog.pg_advisory_xact_lock_shared(CAST(%(key)s AS bigint)) AS text) AS locked"
_EXCLUSIVE = _SHARED.replace("_shared", "")
_GIVEN = (
    "SELECT CAST(one AS char(36)) FROM pg_catalog.json_array_elements_text("
    "CAST(CAST(%(ids)s AS pg_catalog.text) AS pg_catalog.json)) AS given (one) ORDER BY 1"
)
# In one order, so that relays do not wait for each other in a circle.
_REMEMBER = (
    f"INSERT INTO {INBOX} (id) {_GIVEN} ON CONFLICT DO NOTHING "
    "RETURNING CAST(id AS pg_catalog.text) AS id"
)
_FORGET = f"DELETE FROM {INBOX} WHERE id IN ({_GIVEN})"  # noqa: S608
_OLD = (
    f"DELETE FROM {INBOX} WHERE forwarded_at "  # noqa: S608
    "< now() - pg_catalog.make_interval(days => CAST(%(days)s AS int)) RETURNING 1 AS one"
)
_INBOX = f"SELECT CAST(pg_catalog.to_regclass('{INBOX}') AS pg_catalog.text) AS name"
_TAKEN = (
    "SELECT DISTINCT queueing_lock FROM procrastinate_jobs WHERE status = 'todo' AND queueing_lock = "
    "ANY(ARRAY(SELECT pg_catalog.json_array_elements_text("
    "CAST(CAST(%(locks)s AS pg_catalog.text) AS pg_catalog.json))))"
)

_ITS_OWN = ("22", "23", "54", "P0")
"""The classes of SQLSTATE of an error that one row is to blame for: its data, a constraint, a trigger's refusal."""

_MAY_NOT = (
    f"the relay's role may not create the table {INBOX} in {QUEUE}: run what `procrastinate-extconn-outbox "
    "tables --inbox` prints, and grant SELECT, INSERT and DELETE on it"
)
_COMMITS = (
    f"the connections to {QUEUE} commit each statement by themselves, so rows could be lost: make the "
    "relay's app on a pool, an engine or a connector without AUTOCOMMIT"
)


class Forwarded(NamedTuple):
    """What became of rows."""

    gone: list[str]
    """Those whose jobs are in the queue."""
    aside: dict[str, str]
    """Those that cannot be forwarded, and why."""


async def prepare(queue: Lent) -> None:
    """Create the inbox if it is missing.

    :raises ExternalConnectionError: if the role may not. It names the command that prints the statement.
    """
    if (await queue.execute(_INBOX, {}))[0]["name"]:
        return
    await queue.execute(_EXCLUSIVE, {"key": _KEY})
    with _explained("42501", _MAY_NOT):
        for statement in inbox_ddl():
            # Another relay may have been faster. A second look would not see that, as the server caches the first.
            statement = statement.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS")
            await queue.execute(statement, {})


@contextlib.contextmanager
def _explained(sqlstate: str, text: str) -> Generator[None]:
    """Raise an `ExternalConnectionError` with *text* for the server's error *sqlstate*."""
    try:
        yield
    except ConnectorException as exc:
        if read(exc)[1].sqlstate != sqlstate:
            raise
        raise ExternalConnectionError(text) from exc


async def _begin(queue: Lent) -> None:
    """Begin a transaction that sees what others have committed meanwhile.

    :raises ExternalConnectionError: if each statement commits by itself, so that no lock would last.
    """
    await queue.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED", {})
    with _explained("25P01", _COMMITS):
        await queue.execute("SAVEPOINT fence", {})


async def enter_fence(queue: Lent) -> None:
    """Keep others from forgetting ids until the transaction ends. Only then may the outbox be read."""
    await _begin(queue)
    await queue.execute(_SHARED, {"key": _KEY})


async def close_fence(queue: Lent, milliseconds: int) -> None:
    """Keep others from forwarding until the transaction ends. Only then may ids be forgotten.

    :param milliseconds: how long to wait for relays that are at work. After that it is an error that passes.
    """
    await _begin(queue)
    await queue.execute(f"SET LOCAL lock_timeout = {milliseconds:d}", {})
    await queue.execute(_EXCLUSIVE, {"key": _KEY})


async def forget(queue: Lent, ids: Iterable[str]) -> None:
    """Let the inbox forget *ids*."""
    await queue.execute(_FORGET, {"ids": json.dumps([*ids])})


async def forget_old(queue: Lent, days: int) -> int:
    """Forget the ids that relays left behind so many days ago, when they were killed. Returns how many."""
    await _begin(queue)
    await queue.execute(_EXCLUSIVE, {"key": _KEY})
    return len(await queue.execute(_OLD, {"days": days}))


async def forward(queue: Lent, rows: Sequence[Row]) -> Forwarded:
    """Defer the jobs of those *rows* that nobody has forwarded yet, in the transaction of *queue*."""
    aside: dict[str, str] = {}
    readable: dict[str, list[Job]] = {}
    for row in rows:
        try:
            require_uuid(row.id)
            readable[row.id] = read_jobs(row.jobs)
        except UnreadableRow as exc:
            aside[row.id] = str(exc)
    found = await queue.execute(_REMEMBER, {"ids": json.dumps([*readable])})
    fresh = {row["id"] for row in found}
    waiting = {row_id: jobs for row_id, jobs in readable.items() if row_id in fresh}
    waiting = await _without_taken(queue, waiting)
    failed = await _defer_all(queue, waiting)
    if failed:
        # Once such a row is mended and waits again, it is to be forwarded.
        await forget(queue, failed)
    aside |= failed
    return Forwarded([row.id for row in rows if row.id not in aside], aside)


async def _without_taken(queue: Lent, waiting: dict[str, list[Job]]) -> dict[str, list[Job]]:
    """*waiting* without the jobs under whose queueing lock another one waits in the queue.

    One in an earlier row may still fail, and so is no reason to leave out this one.
    """
    locks = {job.queueing_lock for jobs in waiting.values() for job in jobs}
    locks.discard(None)
    if not locks:
        return waiting
    found = await queue.execute(_TAKEN, {"locks": json.dumps([*locks])})
    taken = {row["queueing_lock"] for row in found}

    def is_free(row_id: str, job: Job) -> bool:
        if job.queueing_lock in taken:
            _log_taken(row_id, job)
        return job.queueing_lock not in taken

    return {
        row_id: [job for job in jobs if is_free(row_id, job)] for row_id, jobs in waiting.items()
    }


async def _defer_all(queue: Lent, waiting: Mapping[str, list[Job]]) -> dict[str, str]:
    """Defer all jobs in one statement; if that fails, row by row. Returns the rows that fail, and why."""
    try:
        await _defer(queue, [job for jobs in waiting.values() for job in jobs])
    except ConnectorException as exc:
        if not _is_lock(exc) and not _is_its_own(exc):
            raise
    else:
        return {}
    failed: dict[str, str] = {}
    for row_id, jobs in waiting.items():
        try:
            async with _savepoint(queue, "one_row"):
                await _defer_one_by_one(queue, row_id, jobs)
        except ConnectorException as exc:
            if not _is_its_own(exc):
                raise
            failed[row_id] = str(exc)
    return failed


async def _defer_one_by_one(queue: Lent, row_id: str, jobs: Iterable[Job]) -> None:
    for job in jobs:
        try:
            await _defer(queue, [job])
        except ConnectorException as exc:
            if not _is_lock(exc):
                raise
            _log_taken(row_id, job)


async def _defer(queue: Lent, jobs: Sequence[Job]) -> None:
    if not jobs:
        return
    query, parameter = _statement()
    async with _savepoint(queue, "jobs"):
        await queue.execute(query, {parameter: f"[{','.join(job.text for job in jobs)}]"})


def _statement() -> tuple[str, str]:
    """Procrastinate's statement that defers jobs, and its parameter."""
    statement = wire.prepare(sql.queries["defer_jobs"])
    assert statement.jobs is not None
    more = wire.layout(JobToDefer).more
    query = wire.with_attributes(statement.query, more) if more else statement.query
    return query, statement.jobs


@contextlib.asynccontextmanager
async def _savepoint(queue: Lent, name: str) -> AsyncGenerator[None]:
    await queue.execute(f"SAVEPOINT {name}", {})
    try:
        yield
    except ConnectorException as exc:
        if not may_pass(exc):
            await queue.execute(f"ROLLBACK TO SAVEPOINT {name}", {})
        raise
    await queue.execute(f"RELEASE SAVEPOINT {name}", {})


def _is_lock(error: ConnectorException) -> bool:
    return isinstance(error, UniqueViolation) and error.constraint_name == QUEUEING_LOCK_CONSTRAINT


def _is_its_own(error: ConnectorException) -> bool:
    return (read(error)[1].sqlstate or "")[:2] in _ITS_OWN and not may_pass(error)


def _log_taken(row_id: str, job: Job) -> None:
    logger.info(
        "A job of %s in row %s is not deferred: one waits already under its queueing lock",
        job.task_name,
        row_id,
        extra={"action": "outbox_job_waits_already"},
    )
