"""Run the jobs of an open transaction, in the order and with the outcome of a worker."""

from __future__ import annotations

import asyncio
import datetime
import functools
import inspect
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from procrastinate import App, JobContext
from procrastinate.exceptions import ConnectorException, JobAborted, TaskNotFound
from procrastinate.jobs import DeleteJobCondition, Job, Status
from procrastinate.manager import JobManager
from procrastinate.tasks import Task
from procrastinate.worker import Worker

from ..ambient import using
from ..completion import settlement
from ..completion.decision import Fate
from ..diagnosis import read
from ..exceptions import ExternalConnectionError, SyncAsyncMismatch
from ..layer import layer
from ..queries import JOB_ROW
from .open_transaction import TestedConnection

AnyTask = Task[..., Any, Any]

# As Procrastinate's fetch_job. Two things differ: the time is given, and the job was written by this transaction. The
# writer of a row that can be seen is in progress only if it is this transaction, or one of its subtransactions. Their
# ids follow its own, and xmin has the lower 32 bits of them.
_DUE = """\
SELECT id FROM (
    SELECT *, (CAST(CAST(xmin AS text) AS bigint) - txid_current()) & 4294967295 AS later
    FROM procrastinate_jobs
) AS jobs
WHERE status = 'todo'
    AND (scheduled_at IS NULL OR scheduled_at <= CAST(%(now)s AS timestamptz))
    AND CASE WHEN later < 2147483648 THEN txid_status(txid_current() + later) = 'in progress' ELSE false END
    AND NOT EXISTS (
        SELECT FROM procrastinate_jobs AS other
        WHERE other.lock = jobs.lock AND (
            other.status = 'doing' OR other.status = 'todo' AND (
                other.priority > jobs.priority OR other.priority = jobs.priority AND other.id < jobs.id
            )
        )
    )
ORDER BY priority DESC, id LIMIT 1"""

_TAKE = "UPDATE procrastinate_jobs SET status = 'doing' WHERE id = %(job_id)s"
_DELETE = "DELETE FROM procrastinate_jobs WHERE id = %(job_id)s"

_CLOSES_CONNECTIONS = "procrastinate.contrib.django.db_cleanup"
"""The module of middlewares that close Django's connections of the worker's thread around each task."""

_ELSEWHERE = (
    "run_deferred(): the transaction of the test has not failed, so this error came from another connection, or from "
    "inside a savepoint. Another connection does not see what this transaction has not committed."
)


class JobRun(NamedTuple):
    """One run of a job in `run_deferred`."""

    job: Job
    """The job as it was stored after this run: its ``status`` is ``"todo"`` if it waits for a retry."""
    result: Any
    """What the task returned."""
    exception: BaseException | None
    """What the task raised."""


def run_deferred(
    conn: object,
    app: App,
    *,
    now: datetime.datetime | None = None,
    limit: int = 1000,
    raise_errors: bool = True,
) -> Any:
    """Run the jobs that the open transaction of *conn* wrote, and the jobs that they defer, as a worker would.

    Jobs run one at a time, in a worker's order: by priority, then by id, each at its time, with its lock free. Each
    runs inside ``using(conn)``. Its outcome is stored on *conn*, and a retry that is due runs too. A job that the
    transaction retried, or changed in another way while it waits, is one that it wrote. Committed jobs do not
    run, but their locks count.

    :param conn: any connection that a plugin takes, in the transaction that deferred the jobs.
    :param app: the app of the tasks; a worker's options are its ``worker_defaults``.
    :param now: the time that schedules are compared with; the clock's at each look if None.
    :param limit: how many runs are too many.
    :param raise_errors: raise the exception of the first task that fails for good, once that is stored.
    :returns: a list of `JobRun`, in the order of the runs; for an async connection an awaitable of that.
    :raises AssertionError: if *limit* runs were not enough, or if a task ended the transaction.
    :raises OutsideTransaction: if *conn* commits each statement by itself.
    :raises ExternalConnectionError: if *app* is not patched.
    :raises SyncAsyncMismatch: if a task is sync and *conn* is async, or the reverse. The job stays as it is.
    """
    __tracebackhide__ = True
    if now is not None and now.utcoffset() is None:
        raise ValueError("run_deferred(now=...) needs a time with a time zone")
    connector = app.connector
    if not (layer.is_on(connector) or connector in layer.own_connectors):
        raise ExternalConnectionError(
            f"run_deferred() needs an app whose tasks defer on a connection, and its {type(connector).__name__} is not "
            "patched: call procrastinate_extconn.install(), or patch(app)"
        )
    app.perform_import_paths()  # type: ignore[no-untyped-call]
    runner = _Runner(conn, app)
    return runner.tested.answer(runner.run_all(now, limit, raise_errors=raise_errors))


class _Runner:
    """One call of `run_deferred`."""

    def __init__(self, conn: object, app: App) -> None:
        self._conn = conn
        self._app = app
        self._worker = Worker(app=app, **app.worker_defaults)
        self.tested = TestedConnection(conn, app.connector)
        self._manager = JobManager(self.tested)
        self._transaction = 0

    async def run_all(
        self, now: datetime.datetime | None, limit: int, *, raise_errors: bool
    ) -> list[JobRun]:
        __tracebackhide__ = True
        self._transaction = await self.tested.transaction_id("its jobs are committed already")
        runs: list[JobRun] = []
        while job := await self._due(now or datetime.datetime.now(datetime.timezone.utc)):
            if len(runs) >= limit:
                raise AssertionError(_too_many(runs, limit))
            runs.append(run := await self._run(job))
            if raise_errors and run.exception is not None and run.job.status == "failed":
                raise run.exception
        return runs

    async def _due(self, now: datetime.datetime) -> Job | None:
        rows = await self.tested.rows(_DUE, now=now)
        return await self._stored(rows[0]["id"]) if rows else None

    async def _stored(self, job_id: int) -> Job | None:
        jobs = list(await self._manager.list_jobs_async(id=job_id))
        return jobs[0] if jobs else None

    async def _run(self, job: Job) -> JobRun:
        task = self._app.tasks.get(job.task_name)
        if task is not None:
            self._require_same(task)
        await self.tested.rows(_TAKE, job_id=job.id)
        await self.tested.rows("SAVEPOINT run_deferred")
        job = job.evolve(status=Status.DOING.value)
        result: Any = None
        exception: BaseException | None = None
        try:
            if task is None:
                raise TaskNotFound(f"the app has no task of the name {job.task_name!r}")
            result = await self._call(task, job)
        except (Exception, asyncio.CancelledError) as exc:
            if _is_cancelled_itself(exc):
                raise
            exception = exc
        await self._require_transaction(job, exception)
        stored, exception = await self._settle(task, job, exception)
        return JobRun(stored, result, exception)

    def _require_same(self, task: AnyTask) -> None:
        """Refuse a task that cannot use the connection."""
        description = self.tested.description
        if _is_async(task.func) is not description.is_async:
            kinds = ("a sync", "an async") if description.is_async else ("an async", "a sync")
            raise SyncAsyncMismatch(
                f"run_deferred(): {task.name!r} is {kinds[0]} task, and cannot use this {description.driver} "
                f"connection, which is {kinds[1]} one: run it on a connection of its own kind"
            )

    async def _call(self, task: AnyTask, job: Job) -> Any:
        worker = self._worker
        context = JobContext(
            app=self._app,
            worker_name=worker.worker_name,
            worker_queues=worker.queues,
            additional_context=dict(worker.additional_context or {}),
            job=job,
            abort_reason=lambda: None,
            start_timestamp=time.time(),
        )
        compose = functools.partial(_compose, context=context, worker=worker)

        async def run() -> Any:
            call = functools.partial(
                task, *([context] if task.pass_context else []), **job.task_kwargs
            )
            result = compose(_task_middlewares(worker, task), call)()
            return await result if inspect.isawaitable(result) else result

        with using(self._conn):
            return await compose(getattr(worker, "worker_middleware", ()), run)()

    async def _require_transaction(self, job: Job, exception: BaseException | None) -> None:
        """Make sure that the outcome can be stored: undo what failed, and refuse a transaction that was ended."""
        query = f"SELECT txid_status({self._transaction}) AS fate"
        try:
            [row] = await self.tested.send(query)
        except Exception:  # noqa: BLE001 - each driver has its own
            try:
                await self.tested.send("ROLLBACK TO SAVEPOINT run_deferred")
                [row] = await self.tested.send(query)
            except Exception:  # noqa: BLE001
                raise AssertionError(_ended(job, "ended, or its connection closed,")) from exception
        else:
            if exception is not None and _is_of_a_server(exception):
                _add_note(exception, _ELSEWHERE)
        if row["fate"] != "in progress":
            fate = "committed" if row["fate"] == "committed" else "rolled back"
            raise AssertionError(_ended(job, fate)) from exception

    async def _settle(
        self, task: AnyTask | None, job: Job, exception: BaseException | None
    ) -> tuple[Job, BaseException | None]:
        """Store the outcome, unless the task has: by `complete`, or by a call of the job manager."""
        assert job.id is not None
        delete = self._worker.delete_jobs
        rows = await self.tested.rows(JOB_ROW, job_id=job.id)
        fate = Fate.of(rows[0], job) if rows else Fate.TAKEN
        status = Status.SUCCEEDED
        if fate is Fate.RUNNING:
            if exception is None and settlement.is_expected(job):
                exception = settlement.not_completed(job)
            status = await self._store(task, job, exception)
        elif fate is Fate.COMPLETED and delete is not DeleteJobCondition.NEVER:
            await self.tested.rows(_DELETE, job_id=job.id)
        return await self._stored(job.id) or job.evolve(status=status.value), exception

    async def _store(
        self, task: AnyTask | None, job: Job, exception: BaseException | None
    ) -> Status:
        is_aborted = isinstance(exception, JobAborted)
        if task is not None and exception is not None and not is_aborted:
            retry = task.get_retry_exception(exception=exception, job=job)
            if retry is not None:
                decision = retry.retry_decision
                await self._manager.retry_job(
                    job=job,
                    retry_at=decision.retry_at,
                    lock=decision.lock,
                    priority=decision.priority,
                    queue=decision.queue,
                )
                return Status.TODO
        status = Status.SUCCEEDED if exception is None else Status.FAILED
        if is_aborted or isinstance(exception, asyncio.CancelledError):
            status = Status.ABORTED
        delete = self._worker.delete_jobs
        await self._manager.finish_job(
            job=job,
            status=status,
            delete_job=delete is DeleteJobCondition.ALWAYS
            or (delete is DeleteJobCondition.SUCCESSFUL and status is Status.SUCCEEDED),
        )
        return status


def _is_async(func: Callable[..., Any]) -> bool:
    """Whether *func* is an async function, or a plain wrapper around one."""
    functions = (func, inspect.unwrap(func), getattr(func, "__call__", None))  # noqa: B004
    return any(map(inspect.iscoroutinefunction, functions))


def _is_cancelled_itself(exc: BaseException) -> bool:
    """Whether `run_deferred` is to end, and not its task alone. Before Python 3.11 nobody can tell."""
    if not isinstance(exc, asyncio.CancelledError):
        return False
    cancelling = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is None or cancelling() > 0


def _task_middlewares(worker: Any, task: AnyTask) -> list[Callable[..., Any]]:
    """What Procrastinate 3.9 and later put around a task, without what closes the test's connection."""
    resolve = getattr(worker, "_resolve_task_middlewares", None)
    middlewares = resolve(task, inspect.iscoroutinefunction(task.func)) if resolve else []
    return [one for one in middlewares if getattr(one, "__module__", None) != _CLOSES_CONNECTIONS]


def _compose(
    middlewares: Iterable[Callable[..., Any]],
    call: Callable[[], Any],
    *,
    context: JobContext,
    worker: Worker,
) -> Callable[[], Any]:
    for middleware in reversed(list(middlewares)):
        call = functools.partial(middleware, call, context, worker)
    return call


def _is_of_a_server(exception: BaseException) -> bool:
    if isinstance(exception, ConnectorException) and exception.__cause__ is None:
        return False
    return read(exception)[1].sqlstate is not None


def _add_note(exception: BaseException, note: str) -> None:
    """`add_note`, also before Python 3.11, where pytest shows notes as well."""
    notes = getattr(exception, "__notes__", [])
    exception.__notes__ = [*notes, note]  # type: ignore[attr-defined]


def _too_many(runs: list[JobRun], limit: int) -> str:
    counts = Counter(run.job.task_name for run in runs)
    seen = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
    return f"run_deferred() has run {limit} jobs, and more are due. A task may defer itself; the runs: {seen}"


def _ended(job: Job, fate: str) -> str:
    return (
        f"the transaction of run_deferred() was {fate} while job {job.id} of {job.task_name} ran, so the outcome of "
        "the job is not stored: let the test end the transaction, not the task"
    )
