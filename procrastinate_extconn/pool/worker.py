"""A worker on the application's pool: its own statements run on one connection that it holds.

Its tasks may hold all other connections for as long as they like. A statement whose connection is lost is repeated.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from procrastinate import sql
from procrastinate.connector import Notify
from procrastinate.exceptions import ConnectorException
from procrastinate.worker import Worker

from ..exceptions import ExternalConnectionError, UnsupportedConnection
from ..fallback import type_name
from ..hookspecs import Rows
from ..plugins import plugins
from ..queries import DELETE_COMPLETED_JOB, JOB_ROW, UNLOCKED_JOB_ROW
from . import recovery
from .listening import HeldConnection, Listening

if TYPE_CHECKING:
    from .connector import PoolConnector

T = TypeVar("T")

logger: logging.Logger = logging.getLogger(__name__)

REGISTER, _UNREGISTER = sql.queries["register_worker"], sql.queries["unregister_worker"]
_OWN = {_UNREGISTER, recovery.FETCH, JOB_ROW, UNLOCKED_JOB_ROW, DELETE_COMPLETED_JOB}
_OWN |= {
    sql.queries[name] for name in ("update_heartbeat", "list_jobs_to_abort", "defer_periodic_job")
}
"""What a worker asks, besides the end of each job that it has fetched."""

_WHEN_OVER: dict[str, Rows] = {recovery.FETCH: [{"id": None}], _UNREGISTER: []}
"""What a worker that stops without a server is told."""

_IN_DOUBT = 60.0
"""Seconds for which a server may still be about to commit a fetch whose connection is lost."""
_FAREWELL = 5.0
"""Seconds for which a worker that stops tries to reach the server, but for the end of a job."""

_session: ContextVar[WorkerSession | None] = ContextVar(
    "procrastinate_extconn_worker", default=None
)


class WorkerSession:
    """The database side of one worker, from its registration to its end.

    :param worker: None if somebody listens without a worker.
    """

    def __init__(self, connector: PoolConnector, worker: Worker | None) -> None:
        self._connector = connector
        self._worker = worker
        self._held = HeldConnection(connector.pool, connector.run_on)
        self._running: dict[int, int] = {}
        self._doubtful_until = 0.0
        self._stopping_since: float | None = None
        self._closed = False

    def is_of(self, connector: PoolConnector) -> bool:
        """Whether the worker runs, on *connector*."""
        return connector is self._connector and not self._closed

    def owns(self, query: str, arguments: dict[str, Any]) -> bool:
        """Whether the worker itself asks *query*, not one of its tasks."""
        return query in _OWN or (
            query in recovery.ENDS and arguments.get("job_id") in self._running
        )

    async def start(self) -> None:
        """Take a connection, and see whether the pool is large enough.

        :raises ExternalConnectionError: if it is not, or is not open.
        """
        another = self._connector.listen_pool
        if another is not None and plugins().listen(another, ("any",)) is None:
            raise UnsupportedConnection(
                f"PoolConnector(..., listen=...) got an object of type {type_name(type(another))}, and no plugin "
                "listens on it: pass an asynchronous pool or engine"
            )
        listener = await self._held.take()
        try:
            self._check_size(listener.size if listener else None)
        except ExternalConnectionError:
            await self.close()
            raise

    def _check_size(self, size: int | None) -> None:
        assert self._worker
        needed = self._worker.concurrency + 2
        if size is None or size >= needed:
            return
        text = (
            f"the pool ({type_name(type(self._connector.pool))}) opens at most {size} connections, and a worker of "
            f"concurrency {self._worker.concurrency} needs {needed}: one for itself, one for each task, and one for "
            "what waits for a lock"
        )
        if size < 2:
            raise ExternalConnectionError(text)
        logger.warning("Tasks may wait for a connection: %s", text, extra={"action": "small_pool"})

    async def close(self) -> None:
        """Give the connection back."""
        self._closed = True
        await self._held.give_back()

    async def run(self, query: str, arguments: dict[str, Any]) -> Rows:
        """Run one of the worker's own queries, however often it has to be sent."""
        in_doubt = query == recovery.FETCH and time.monotonic() < self._doubtful_until
        statement = recovery.OwnStatement(query, arguments, self._running, in_doubt=in_doubt)
        try:
            rows = await self._run(statement)
        except ConnectorException as exc:
            over = self._stopping_since is not None and recovery.is_transient(exc)
            if not over or query not in _WHEN_OVER:
                raise
            return _WHEN_OVER[query]
        finally:
            if statement.in_doubt and not in_doubt:
                self._doubtful_until = time.monotonic() + _IN_DOUBT
            if query == _UNREGISTER:
                await self.close()
        self._note(statement, rows)
        return rows

    async def _run(self, statement: recovery.OwnStatement) -> Rows:
        text = recovery.patient(statement.query)
        ends_job = statement.attempts is not None
        try:
            return await self.repeat(lambda: statement.run(self._send, text), ends_job=ends_job)
        except ConnectorException as exc:
            if not recovery.is_blocked(exc):
                raise
        # It waits on another connection, so that the heartbeat does not wait behind it.
        send = self._connector.run_on_pool
        return await self.repeat(lambda: statement.run(send, statement.query), ends_job=ends_job)

    def _note(self, statement: recovery.OwnStatement, rows: Rows) -> None:
        """Keep which jobs run here."""
        row = rows[0] if rows else {}
        if statement.query == recovery.FETCH:
            if row["id"] is not None:
                self._running[row["id"]] = row["attempts"]
            return
        job_id = statement.arguments.get("job_id", 0)
        over = statement.attempts is not None and self._running.get(job_id) == statement.attempts
        if over or row.get("status", "doing") != "doing":
            self._running.pop(job_id, None)

    async def repeat(self, attempt: Callable[[], Awaitable[T]], *, ends_job: bool = False) -> T:
        """Repeat *attempt* until it succeeds, fails for good, or the worker has no time left."""
        for pause in recovery.pauses():
            try:
                return await attempt()
            except ConnectorException as exc:
                if not recovery.is_transient(exc) or self._is_over(ends_job):
                    raise
                logger.warning(
                    "The worker's statement failed and is repeated: %s",
                    exc,
                    extra={"action": "worker_statement_repeated"},
                )
            await asyncio.sleep(pause)
        raise AssertionError("pauses never end")

    def _is_over(self, ends_job: bool) -> bool:
        """Whether the worker stops, and has no time left."""
        if self._worker is None or not self._worker._stop_event.is_set():
            return False
        self._stopping_since = self._stopping_since or time.monotonic()
        grace = self._worker.shutdown_graceful_timeout if ends_job else _FAREWELL
        return grace is not None and time.monotonic() > self._stopping_since + grace

    async def _send(self, query: str, arguments: dict[str, Any]) -> Rows:
        rows = await self._held.send(query, arguments)
        return await self._connector.run_on_pool(query, arguments) if rows is None else rows

    async def listen(self, on_notification: Notify, channels: Sequence[str]) -> None:
        """Call *on_notification* for each notification on *channels*, until cancelled."""
        another = self._connector.listen_pool
        held = self._held if another is None else HeldConnection(another, self._connector.run_on)
        try:
            listening = Listening(held, self.repeat, self._connector.run_on_pool)
            await listening.run(on_notification, channels)
        finally:
            if held is not self._held:
                await held.give_back()


async def run(connector: PoolConnector, query: str, arguments: dict[str, Any]) -> Rows | None:
    """Run *query* if a worker on *connector* asks it for itself.

    :returns: None if it is a call of an application's or of a task's.
    """
    session = session_of(connector)
    if query == REGISTER and (worker := _asking_worker()):
        session = WorkerSession(connector, worker)
        await session.start()
        _session.set(session)  # The worker's own tasks, and its jobs, inherit it.
    elif session is None or not session.owns(query, arguments):
        return None
    return await session.run(query, arguments)


def session_of(connector: PoolConnector) -> WorkerSession | None:
    """The session of the worker that this call comes from, be it from one of its tasks."""
    session = _session.get()
    return session if session and session.is_of(connector) else None


def _asking_worker() -> Worker | None:
    frame = inspect.currentframe()
    while frame and not isinstance(worker := frame.f_locals.get("self"), Worker):
        frame = frame.f_back
    return worker if frame else None
