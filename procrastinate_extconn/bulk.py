"""`defer_many`: a stream of jobs of any length, in flat memory."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeAlias

from procrastinate import sql
from procrastinate.exceptions import ProcrastinateException
from procrastinate.jobs import JobDeferrer
from procrastinate.tasks import Task
from procrastinate.testing import InMemoryConnector

from . import ambient, wire
from .base import json_of
from .exceptions import ExternalConnectionError
from .hookspecs import OUTBOX
from .options import External, unwrap
from .plugins import plugins
from .queries import DEFER_ROWS
from .sync_async import done, finish

Row: TypeAlias = "Mapping[str, Any]"
_OURS = ("procrastinate", "procrastinate_extconn")


def defer_many(
    deferrer: Task[..., Any, Any] | JobDeferrer, rows: Iterable[Row], *, chunk_size: int = 1000
) -> int:
    """Defer a job for each of *rows*, however many they are.

    One statement for each chunk, and in memory never more than two chunks. What the jobs have in common (connection,
    queue, priority, locks, schedule, task arguments) comes from ``configure()``. No job is logged.

    :param deferrer: a task, or what its ``configure()`` returned.
    :param rows: the arguments of each job, as dicts. Wrap it to show progress: ``tqdm(rows)``.
    :param chunk_size: how many jobs a statement defers.
    :returns: how many jobs; with ``on_conflict="existing"`` those that were found count as well.
    :raises TypeError: if *deferrer* or a row is something else.
    :raises ValueError: if *chunk_size* is less than 1.
    """
    stream = _Stream(deferrer, is_async=False)
    try:
        iterator = iter(rows)
    except TypeError as exc:
        raise TypeError(
            f"defer_many() takes an iterable of dicts, got {type(rows).__name__}: defer_many_async() takes an "
            "asynchronous one too"
        ) from exc
    return finish(stream.defer(iterator, chunk_size))


async def defer_many_async(
    deferrer: Task[..., Any, Any] | JobDeferrer,
    rows: Iterable[Row] | AsyncIterable[Row],
    *,
    chunk_size: int = 1000,
) -> int:
    """`defer_many` on an asynchronous connection or connector; *rows* may be an asynchronous iterable."""
    stream = _Stream(deferrer, is_async=True)
    iterator = aiter(rows) if isinstance(rows, AsyncIterable) else iter(rows)
    return await stream.defer(iterator, chunk_size)


class _Stream:
    """The jobs of one call on their way, chunk by chunk."""

    def __init__(self, deferrer: object, *, is_async: bool) -> None:
        if isinstance(deferrer, Task):
            deferrer = deferrer.configure()
        if not isinstance(deferrer, JobDeferrer):
            raise TypeError(
                f"expected a task, or what its configure() returned, got {type(deferrer).__name__}"
            )
        connector = deferrer.job_manager.connector
        self._deferrer = deferrer
        self._is_async = is_async
        self._connector = connector if is_async else connector.get_sync_connector()
        self._connection = deferrer.connection
        self._execute = self._method()
        self._common = self._common_record()

    def _method(self) -> Any:
        name = "execute_query_all_async" if self._is_async else "execute_query_all"
        if self._connection is None:
            return getattr(self._connector, name)
        execute = getattr(self._connector, f"{name}_with_connection")
        return functools.partial(execute, self._connection)

    def _common_record(self) -> str | None:
        """What the jobs have in common, as JSON; None where `JobDeferrer.batch_defer` has to do.

        That deals with a queueing lock, which all of them would share, and with ``savepoint=True``. InMemoryConnector,
        and a connector that a person wrote, may know no other queries than Procrastinate's.
        """
        job = self._deferrer.job
        encode = getattr(self._deferrer.job_manager, "_defer_jobs_query_kwargs", None)
        home = type(self._connector).__module__.partition(".")[0]
        if (
            job.queueing_lock is not None
            or DEFER_ROWS is None
            or encode is None
            or home not in _OURS
            or isinstance(self._connector, InMemoryConnector)
            or _keeps(self._target())
            or _is_outbox(self._target())
        ):
            return None
        return wire.encode_jobs(encode(jobs=[job.evolve(task_kwargs={})])["jobs"])[1:-1]

    async def defer(self, rows: Iterator[Row] | AsyncIterator[Row], chunk_size: int) -> int:
        """Defer them all."""
        if chunk_size < 1:
            raise ValueError(f"chunk_size should be 1 or more, got {chunk_size}")
        deferred = chunks = 0
        try:
            while chunk := await _take(rows, chunk_size):
                deferred += await self._send(chunk)
                chunks += 1
        except Exception as exc:
            _explain(exc, self._progress(chunks, deferred, chunk_size))
            raise
        return deferred

    async def _send(self, chunk: list[Row]) -> int:
        jobs = _arguments(chunk, self._deferrer.job.task_kwargs)
        if self._common is None:
            defer: Any = self._deferrer.batch_defer
            if self._is_async:
                defer = self._deferrer.batch_defer_async
            return len(await done(defer(*jobs)))
        text = wire.encode_rows(jobs, json_of(self._connector, "dumps"))
        [row] = await done(self._execute(query=DEFER_ROWS, common=self._common, rows=text))
        return int(row["count"])

    def _progress(self, chunks: int, deferred: int, chunk_size: int) -> str:
        """Which chunk has failed, and what has become of the jobs before it."""
        text = f"defer_many: chunk {chunks + 1} failed, which begins with row {chunks * chunk_size + 1:,}."
        if not deferred:
            return f"{text} No chunk was deferred before it."
        return f"{text} The {deferred:,} jobs of the chunks before it {self._fate()}."

    def _target(self) -> object | None:
        """The caller's connection, if there is one."""
        connection: object = self._connection
        return ambient.connection(sql.queries["defer_jobs"]) if connection is None else connection

    def _fate(self) -> str:
        try:
            connection = self._target()
            if connection is None:
                return "are committed, unless the app's connector takes part in a transaction"
            description = plugins().describe(unwrap(connection))
        except ExternalConnectionError:
            description = None
        state = description.state if description else "unknown"
        if state == "autocommit":
            return "are committed"
        if state in ("closed", "unknown"):
            return "belong to the connection's transaction, or are committed if it had none"
        return "belong to your transaction, and are kept or undone with it"


def _keeps(connection: object) -> bool:
    return isinstance(connection, External) and connection.savepoint


def _is_outbox(connection: object) -> bool:
    if connection is None:
        return False
    description = plugins().describe(unwrap(connection))
    return description is not None and description.dialect == OUTBOX


async def _take(rows: Iterator[Row] | AsyncIterator[Row], count: int) -> list[Row]:
    if isinstance(rows, Iterator):
        return list(islice(rows, count))
    chunk: list[Row] = []
    async for row in rows:
        chunk.append(row)
        if len(chunk) == count:
            break
    return chunk


def _arguments(chunk: list[Row], common: Mapping[str, Any]) -> list[dict[str, Any]]:
    try:
        return [dict(common, **row) for row in chunk]
    except TypeError as exc:
        raise TypeError(
            f"a row should be a dict of task arguments, with their names: {exc}"
        ) from exc


def _explain(exc: Exception, text: str) -> None:
    """Add *text* to the message of an error of Procrastinate's or ours; to another as a note (Python 3.11)."""
    if isinstance(exc, ProcrastinateException):
        exc.args = (f"{str(exc).rstrip('.')}. {text}", *exc.args[1:])
    elif add_note := getattr(exc, "add_note", None):
        add_note(text)
