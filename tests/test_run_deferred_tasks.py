"""What `run_deferred` gives to a task, and what it makes of time, limits and errors."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import Iterator
from typing import Any

import procrastinate
import psycopg
import pytest
from procrastinate.exceptions import TaskNotFound
from tasks_to_run import HOUR, NOW, add_tasks

import procrastinate_extconn as extconn
from procrastinate_extconn.testing import (
    assert_deferred,
    deferred_jobs,
    run_deferred,
)


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A psycopg connection."""
    with contextlib.closing(psycopg.connect(dsn)) as conn:
        yield conn


# -- time, limits, errors ---------------------------------------------------------------------------------------------


def test_schedule(conn: Any, app: procrastinate.App) -> None:
    """A schedule is compared with `now`, and with the clock, which goes on in a transaction, if there is none."""
    add_tasks(app, log := [], is_async=False)
    conn.execute("SELECT 1")
    at = datetime.datetime.now(datetime.timezone.utc)  # later than the transaction's own now()
    app.tasks["plain"].configure(connection=conn, schedule_at=at).defer(n=1)
    app.tasks["plain"].configure(connection=conn, schedule_at=NOW + HOUR).defer(n=2)
    run_deferred(conn, app)
    assert [line[1] for line in log] == [1]
    run_deferred(conn, app, now=NOW + HOUR)
    assert [line[1] for line in log] == [1, 2]
    with pytest.raises(ValueError, match="time zone"):
        run_deferred(conn, app, now=datetime.datetime(2030, 1, 1))  # noqa: DTZ001


def test_a_later_retry_is_followed(conn: Any, app: procrastinate.App) -> None:
    """A retry that is due only later waits with its attempt counted, and runs once `now` is there."""
    add_tasks(app, log := [], is_async=False)
    app.tasks["later"].configure(connection=conn).defer(n=1)
    [run] = run_deferred(conn, app)
    assert (run.job.status, run.job.attempts, str(run.exception)) == ("todo", 1, "attempt 0")
    run_deferred(conn, app, now=NOW + 2 * HOUR)
    assert len(log) == 10
    assert deferred_jobs(conn) == []


def test_endless(conn: Any, app: procrastinate.App) -> None:
    """Jobs that defer themselves for ever fail the test, which says which they are."""

    @app.task(name="endless")
    def endless() -> None:
        endless.defer()

    endless.configure(connection=conn).defer()
    with pytest.raises(AssertionError, match=r"has run 5 jobs.*endless \(5\)"):
        run_deferred(conn, app, limit=5)
    assert len(deferred_jobs(conn)) == 1
    conn.rollback()
    app.tasks["endless"].configure(connection=conn).defer()
    with pytest.raises(AssertionError, match="1000"):
        run_deferred(conn, app)


def test_first_failure_is_raised(conn: Any, app: procrastinate.App) -> None:
    """What a task raised for good is raised once it is stored, and later jobs wait."""
    add_tasks(app, [], is_async=False)
    job_id = app.tasks["gives_up"].configure(connection=conn).defer(n=1)
    app.tasks["plain"].configure(connection=conn).defer(n=2)
    with pytest.raises(RuntimeError, match="attempt 1"):
        run_deferred(conn, app)
    [row] = conn.execute("SELECT status, attempts FROM procrastinate_jobs WHERE id = %s", [job_id])
    assert row == ("failed", 2)
    assert_deferred(conn, "plain", n=2)


def test_unknown_task(conn: Any, app: procrastinate.App) -> None:
    """A job of a task that the app lacks fails, and the error names the task."""
    app.configure_task("misspelt", connection=conn).defer()
    with pytest.raises(TaskNotFound, match="'misspelt'"):
        run_deferred(conn, app)


async def test_a_cancelled_task_is_aborted(app: procrastinate.App, dsn: str) -> None:
    """A task that a CancelledError of its own ends is aborted, where Python can tell it from the test's."""

    @app.task(name="cancelled")
    async def cancelled() -> None:
        raise asyncio.CancelledError

    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        await cancelled.configure(connection=conn).defer_async()
        if hasattr(asyncio.Task, "cancelling"):
            [run] = await run_deferred(conn, app)
            assert run.job.status == "aborted"
        else:
            with pytest.raises(asyncio.CancelledError):
                await run_deferred(conn, app)
        await conn.rollback()


async def test_the_test_is_cancelled(app: procrastinate.App, dsn: str) -> None:
    """A test that is cancelled ends, whether a sync or an async task runs."""

    @app.task(name="waits")
    async def waits() -> None:
        started.set()
        await asyncio.Event().wait()

    started = asyncio.Event()
    async with await psycopg.AsyncConnection.connect(dsn) as conn:

        async def test() -> None:
            await waits.configure(connection=conn).defer_async()
            await run_deferred(conn, app)

        running = asyncio.create_task(test())
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await conn.rollback()


async def test_a_task_of_the_other_kind(app: procrastinate.App, dsn: str, conn: Any) -> None:
    """A sync task on an async connection is refused by name, and an async one on a sync connection."""
    add_tasks(app, log := [], is_async=False)
    app.task(name="async_task")(_nothing)
    async with await psycopg.AsyncConnection.connect(dsn) as async_conn:
        await app.tasks["plain"].configure(connection=async_conn).defer_async(n=1)
        with pytest.raises(extconn.SyncAsyncMismatch, match="'plain' is a sync task"):
            await run_deferred(async_conn, app)
        assert len(await deferred_jobs(async_conn)) == 1
        await async_conn.rollback()
    app.tasks["async_task"].configure(connection=conn).defer()
    with pytest.raises(extconn.SyncAsyncMismatch, match="'async_task' is an async task"):
        run_deferred(conn, app)
    assert log == []


async def _nothing() -> None: ...


def test_committed_jobs_are_refused(dsn: str, app: procrastinate.App) -> None:
    """On a connection that commits each statement by itself there is no transaction whose jobs could run."""
    with (
        psycopg.connect(dsn, autocommit=True) as conn,
        pytest.raises(extconn.OutsideTransaction, match=r"committed already.*conn\.transaction"),
    ):
        run_deferred(conn, app)


def test_an_app_that_is_not_patched(conn: Any, dsn: str) -> None:
    """An app whose tasks would defer elsewhere is refused."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn))
    with pytest.raises(extconn.ExternalConnectionError, match=r"patch\(app\)"):
        run_deferred(conn, app)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_task_that_ends_the_transaction(conn: Any, app: procrastinate.App, end: str) -> None:
    """A task that commits or rolls back the test's transaction fails the test."""
    app.task(name="ends")(lambda: getattr(conn, end)())
    app.tasks["ends"].configure(connection=conn).defer()
    with pytest.raises(
        AssertionError, match=f"was {'committed' if end == 'commit' else 'rolled back'} while"
    ):
        run_deferred(conn, app)


def test_another_connection_sees_nothing(conn: Any, dsn: str, app: procrastinate.App) -> None:
    """A database error on a connection that the task opened says that this one sees no uncommitted row."""
    conn.execute("CREATE TABLE line (order_id bigint REFERENCES orders)")
    conn.commit()

    @app.task(name="elsewhere")
    def elsewhere() -> None:
        with psycopg.connect(dsn) as other:
            other.execute("INSERT INTO line VALUES (42)")

    @app.task(name="here")
    def here() -> None:
        conn.execute("INSERT INTO line VALUES (43)")

    conn.execute("INSERT INTO orders VALUES (42)")
    elsewhere.configure(connection=conn).defer()
    with pytest.raises(psycopg.errors.ForeignKeyViolation) as caught:
        run_deferred(conn, app)
    assert "does not see" in caught.value.__notes__[0]
    here.configure(connection=conn).defer()
    with pytest.raises(psycopg.errors.ForeignKeyViolation) as caught:
        run_deferred(conn, app)
    assert not hasattr(caught.value, "__notes__")


# -- what a worker gives to a task ------------------------------------------------------------------------------------


def test_context(conn: Any, app: procrastinate.App) -> None:
    """A task gets a context with its job, and what the worker's options say."""
    app.worker_defaults = {"name": "w", "queues": ["q"], "additional_context": {"a": 1}}
    seen = []

    @app.task(name="looks", pass_context=True)
    def looks(context: procrastinate.JobContext, n: int) -> None:
        seen.append(context)

    job_id = looks.configure(connection=conn).defer(n=1)
    run_deferred(conn, app)
    [context] = seen
    assert (context.job.id, context.job.status, context.task) == (job_id, "doing", looks)
    assert (context.worker_name, context.worker_queues) == ("w", ["q"])
    assert (context.additional_context, context.should_abort()) == ({"a": 1}, False)


@pytest.mark.parametrize("delete_jobs", ["successful", "always"])
def test_deleted_jobs(conn: Any, app: procrastinate.App, delete_jobs: Any) -> None:
    """A worker that deletes jobs does so here, and what was deleted is told."""
    app.worker_defaults = {"delete_jobs": delete_jobs}
    add_tasks(app, [], is_async=False)
    app.tasks["plain"].configure(connection=conn).defer(n=1)
    app.tasks["fails"].configure(connection=conn).defer(n=2)
    runs = run_deferred(conn, app, raise_errors=False)
    assert [run.job.status for run in runs] == ["succeeded", "failed"]
    left = conn.execute("SELECT task_name FROM procrastinate_jobs").fetchall()
    assert left == ([("fails",)] if delete_jobs == "successful" else [])


def test_middlewares(conn: Any, app: procrastinate.App) -> None:
    """The middlewares of the worker, of its tasks and of the task run in a worker's order."""
    pytest.importorskip("procrastinate.middleware", reason="Procrastinate has them since 3.9")
    log: list[str] = []

    def middleware(name: str) -> Any:
        def run(call_next: Any, context: Any, worker: Any) -> Any:
            log.append(f"{name} {context.job.task_name} {type(worker).__name__}")
            return call_next()

        return run

    async def around(call_next: Any, context: Any, worker: Any) -> Any:
        log.append("worker")
        return await call_next() + 1

    app.worker_defaults = {"worker_middleware": [around], "task_middleware": [middleware("all")]}
    app.task(name="one", task_middleware=[middleware("its")])(lambda: 1)
    app.tasks["one"].configure(connection=conn).defer()
    [run] = run_deferred(conn, app)
    assert run.result == 2
    assert log == ["worker", "all one Worker", "its one Worker"]


def test_builtin_task(conn: Any, app: procrastinate.App) -> None:
    """A task that calls the job manager does so on the connection."""

    @app.task(name="cancels", pass_context=True)
    def cancels(context: procrastinate.JobContext, job_id: int) -> bool:
        return context.app.job_manager.cancel_job_by_id(job_id)

    add_tasks(app, log := [], is_async=False)
    job_id = app.tasks["plain"].configure(connection=conn).defer(n=1)
    cancels.configure(connection=conn, priority=1).defer(job_id=job_id)
    assert [run.result for run in run_deferred(conn, app)] == [True]
    assert log == []


@pytest.mark.parametrize("then", ["returns", "raises"])
def test_complete(conn: Any, app: procrastinate.App, then: str) -> None:
    """A job that its task completed has succeeded, also if the task then fails."""

    @app.task(name="completes", pass_context=True)
    def completes(context: procrastinate.JobContext) -> None:
        extconn.complete(context, conn)
        if then == "raises":
            raise RuntimeError

    completes.configure(connection=conn).defer()
    [run] = run_deferred(conn, app)
    assert (run.job.status, run.job.attempts) == ("succeeded", 1)


def test_complete_that_was_undone(conn: Any, app: procrastinate.App) -> None:
    """A completion that was rolled back is the task's failure, as it is in a worker."""

    @app.task(name="completes", pass_context=True)
    def completes(context: procrastinate.JobContext) -> None:
        with conn.transaction(force_rollback=True):
            extconn.complete(context, conn)

    completes.configure(connection=conn).defer()
    with pytest.raises(extconn.ExternalConnectionError, match="was not completed"):
        run_deferred(conn, app)
