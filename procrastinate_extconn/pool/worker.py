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

from ..exceptions import ExternalConnectionError
from ..fallback import type_name
from ..hookspecs import Rows
from ..queries import DELETE_COMPLETED_JOB, JOB_ROW, UNLOCKED_JOB_ROW
from .listening import HeldConnection, Listening
from .recovery import ENDS, FETCH, OwnStatement, is_blocked, is_transient, patient

if TYPE_CHECKING:
    from .connector import PoolConnector

T = TypeVar("T")

logger: logging.Logger = logging.getLogger(__name__)

_REGISTER, _UNREGISTER = sql.queries["register_worker"], sql.queries["unregister_worker"]
_OWN = {
    *(_UNREGISTER, FETCH, JOB_ROW, UNLOCKED_JOB_ROW, DELETE_COMPLETED_JOB),
    *(
        sql.queries[name]
        for name in ("update_heartbeat", "list_jobs_to_abort", "defer_periodic_job")
    ),
}
"""What a worker asks, besides the end of each job that it has fetched."""

_REPEATS = "A worker's statement failed and is repeated: %s"
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
        self.connector = connector
        self.closed: bool = False
        self._worker = worker
        self._held = HeldConnection(connector.pool, connector.run_on)
        self._running: dict[int, int] = {}
        self._doubtful_until = 0.0
        self._stopping_since: float | None = None

    def owns(self, query: str, arguments: dict[str, Any]) -> bool:
        """Whether the worker itself asks *query*, not one of its tasks."""
        return query in _OWN or (query in ENDS and arguments.get("job_id") in self._running)

    async def start(self) -> None:
        """Take a connection, and see whether the pool is large enough.

        :raises ExternalConnectionError: if it has one connection at most, or is not open.
        """
        assert self._worker
        listener = await self._held.take()
        size, needed = listener.size if listener else None, self._worker.concurrency + 2
        if size is None or size >= needed:
            return
        text = (
            f"the pool ({type_name(type(self.connector.pool))}) opens at most {size} connections, and a worker of "
            f"concurrency {self._worker.concurrency} needs {needed}: one for itself, one for each task, and one for "
            "what waits for a lock"
        )
        if size < 2:
            await self._close()
            raise ExternalConnectionError(text)
        logger.warning("Tasks may wait for a connection: %s", text, extra={"action": "small_pool"})

    async def _close(self) -> None:
        self.closed = True
        await self._held.give_back()

    async def run(self, query: str, arguments: dict[str, Any]) -> Rows:
        """Run one of the worker's own queries, however often it has to be sent."""
        in_doubt = query == FETCH and time.monotonic() < self._doubtful_until
        statement = OwnStatement(query, arguments, self._running, in_doubt=in_doubt)
        try:
            rows = await self._run(statement)
        finally:
            if statement.in_doubt and not in_doubt:
                self._doubtful_until = time.monotonic() + _IN_DOUBT
            if query == _UNREGISTER:
                await self._close()
        self._note(statement, rows)
        return rows

    async def _run(self, statement: OwnStatement) -> Rows:
        text = patient(statement.query)
        ends_job = statement.attempts is not None
        try:
            return await self.repeat(lambda: statement.run(self._send, text), ends_job=ends_job)
        except ConnectorException as exc:
            if not is_blocked(exc):
                raise
        # It waits on another connection, so that the heartbeat does not wait behind it.
        send = self.connector.run_on_pool
        return await self.repeat(lambda: statement.run(send, statement.query), ends_job=ends_job)

    async def _send(self, query: str, arguments: dict[str, Any]) -> Rows:
        rows = await self._held.send(query, arguments)
        return await self.connector.run_on_pool(query, arguments) if rows is None else rows

    def _note(self, statement: OwnStatement, rows: Rows) -> None:
        """Keep which jobs run here."""
        row: dict[str, Any] = rows[0] if rows else {}
        job_id: int = statement.arguments.get("job_id", 0)
        if statement.query == FETCH and row["id"] is not None:
            self._running[row["id"]] = row["attempts"]
        elif statement.attempts is None:
            if row.get("status", "doing") != "doing":  # of a job that its task has completed
                self._running.pop(job_id, None)
        elif self._running.get(job_id) == statement.attempts:  # or it was fetched again meanwhile
            del self._running[job_id]

    async def repeat(self, attempt: Callable[[], Awaitable[T]], *, ends_job: bool = False) -> T:
        """Repeat *attempt* until it succeeds, fails for good, or the worker has no time left."""
        pause = 0.0
        while True:
            try:
                return await attempt()
            except ConnectorException as exc:
                if not is_transient(exc) or self._is_over(ends_job):
                    raise
                logger.warning(_REPEATS, exc, extra={"action": "worker_repeats"})
            await asyncio.sleep(pause)
            pause = min(2 * pause + 0.05, 2)

    def _is_over(self, ends_job: bool) -> bool:
        """Whether the worker stops, and has no time left."""
        if self._worker is None:
            return False
        stopping: Any = vars(self._worker)["_stop_event"]
        if not stopping.is_set():
            return False
        self._stopping_since = self._stopping_since or time.monotonic()
        grace = self._worker.shutdown_graceful_timeout if ends_job else _FAREWELL
        return grace is not None and time.monotonic() > self._stopping_since + grace

    async def listen(self, on_notification: Notify, channels: Sequence[str]) -> None:
        """Call *on_notification* for each notification on *channels*, until cancelled."""
        another = self.connector.listen_pool
        held = self._held if another is None else HeldConnection(another, self.connector.run_on)

        async def announce(*, channel: str, payload: str) -> None:
            # Procrastinate's worker forgets what it hears while it fetches.
            await self._held.at_rest()
            await on_notification(channel=channel, payload=payload)

        try:
            listening = Listening(held, self.repeat, self.connector.run_on_pool)
            await listening.run(announce, channels)
        finally:
            if held is not self._held or self._worker is None:
                await held.give_back()


async def run(connector: PoolConnector, query: str, arguments: dict[str, Any]) -> Rows | None:
    """Run *query* if a worker on *connector* asks it for itself.

    :returns: None if it is a call of an application's or of a task's.
    """
    session = session_of(connector)
    if query == _REGISTER and (worker := _asking_worker()):
        session = WorkerSession(connector, worker)
        await session.start()
        _session.set(session)  # The worker's own tasks, and its jobs, inherit it.
    elif session is None or not session.owns(query, arguments):
        return None
    return await session.run(query, arguments)


def session_of(connector: PoolConnector) -> WorkerSession | None:
    """The session of the worker that this call comes from, be it from one of its tasks."""
    session = _session.get()
    return session if session and session.connector is connector and not session.closed else None


def _asking_worker() -> Worker | None:
    frame = inspect.currentframe()
    while frame:
        worker = frame.f_locals.get("self")
        if isinstance(worker, Worker):
            return worker
        frame = frame.f_back
    return None
