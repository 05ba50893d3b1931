"""`run_deferred` does on an open transaction what a worker does after the commit."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import Callable, Iterator
from typing import Any

import procrastinate
import psycopg
import pytest
from holding import External, Watch, hold
from procrastinate.exceptions import JobAborted, TaskNotFound
from procrastinate.retry import BaseRetryStrategy, RetryDecision, RetryStrategy

import procrastinate_extconn as extconn
from procrastinate_extconn.kinds import Kind
from procrastinate_extconn.testing import (
    assert_deferred,
    deferred_jobs,
    rolled_back,
    run_deferred,
)

NOW = datetime.datetime.now(datetime.timezone.utc)
HOUR = datetime.timedelta(hours=1)


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A psycopg connection."""
    with contextlib.closing(psycopg.connect(dsn)) as conn:
        yield conn


# -- beside a worker --------------------------------------------------------------------------------------------------


class Moves(BaseRetryStrategy):
    """Retries once, elsewhere."""

    def get_retry_decision(self, *, exception: BaseException, job: Any) -> RetryDecision | None:
        return None if job.attempts else RetryDecision(priority=9, queue="moved", lock="moved")


def fails_before(attempts: int) -> Callable[[Any], None]:
    """A task that succeeds at that attempt."""

    def body(context: Any) -> None:
        if context.job.attempts < attempts:
            raise RuntimeError(f"attempt {context.job.attempts}")

    return body


def aborts(context: Any) -> None:
    """A task that aborts itself."""
    raise JobAborted


BODIES: dict[str, tuple[Callable[[Any], None], Any]] = {
    "plain": (fails_before(0), None),
    "again": (fails_before(2), RetryStrategy(max_attempts=5)),
    "moves": (fails_before(1), Moves()),
    "later": (fails_before(9), RetryStrategy(wait=3600)),
    "gives_up": (fails_before(9), 1),
    "fails": (fails_before(9), None),
    "aborts": (aborts, 3),
    "splits": (fails_before(0), None),
}

JOBS: list[tuple[str, dict[str, Any]]] = [
    ("plain", {}),
    ("plain", {"priority": -1}),
    ("splits", {}),
    ("again", {"lock": "b"}),
    ("plain", {"lock": "b"}),
    ("plain", {"lock": "b", "priority": 7}),
    ("plain", {"schedule_at": NOW - HOUR, "queue": "other"}),
    ("plain", {"schedule_at": NOW + HOUR, "lock": "c"}),
    ("plain", {"lock": "c"}),
    ("moves", {"lock": "d", "priority": 2}),
    ("plain", {"lock": "moved", "priority": 1}),
    ("later", {"lock": "e", "priority": 8}),
    ("plain", {"lock": "e"}),
    ("gives_up", {}),
    ("fails", {"queueing_lock": "q"}),
    ("aborts", {}),
    ("unknown", {}),
]


def add_tasks(app: procrastinate.App, log: list[Any], *, is_async: bool) -> None:
    """Define a task for each body, which logs its run."""

    def start(context: Any, n: int) -> Any:
        log.append((context.task.name, n, context.job.attempts, context.job.status))
        BODIES[context.task.name][0](context)
        return app.tasks["plain"].configure(priority=5, lock="b" if n % 2 else None)

    def sync(context: Any, n: int) -> int:
        deferrer = start(context, n)
        if context.task.name == "splits":
            deferrer.defer(n=100)
            deferrer.defer(n=101)
        return n

    async def async_(context: Any, n: int) -> int:
        deferrer = start(context, n)
        if context.task.name == "splits":
            await deferrer.defer_async(n=100)
            await deferrer.defer_async(n=101)
        return n

    for name, (_, retry) in BODIES.items():
        app.task(name=name, pass_context=True, retry=retry)(async_ if is_async else sync)


def defer_all(external: External, app: procrastinate.App) -> None:
    """Defer each job on the connection."""
    for n, (name, options) in enumerate(JOBS):
        external.defer(app.configure_task(name, allow_unknown=True, **options), n=n)


# Without "scheduled": a worker that ends writes it again for each job that waits for a retry, since its id is removed.
STATE = """\
SELECT task_name, CAST(args AS text), queue_name, priority, lock, CAST(status AS text), attempts,
    scheduled_at > now() + interval '10 minutes',
    (SELECT string_agg(CAST(type AS text), ' ' ORDER BY events.id) FROM procrastinate_events AS events
     WHERE job_id = jobs.id AND type <> 'scheduled')
FROM procrastinate_jobs AS jobs ORDER BY id"""


def work(app: procrastinate.App, **options: Any) -> None:
    """Run a worker until nothing is due."""

    async def run() -> None:
        async with app.open_async():
            await app.run_worker_async(
                wait=False, listen_notify=False, install_signal_handlers=False, **options
            )

    asyncio.run(run())


def test_same_as_a_worker(kind: Kind, app: procrastinate.App, dsn: str) -> None:
    """The same jobs run in the same order, and end with the same status, attempts and events, on every connection."""
    log: list[Any] = []
    add_tasks(app, log, is_async=kind.is_async)
    with hold(kind, dsn) as external:
        defer_all(external, app)
        runs = external.run(lambda: run_deferred(external.conn, app, raise_errors=False))
        state = [tuple(row) for row in external.execute(STATE)]
        external.rollback()
    ours, log[:] = list(log), []

    with hold(kind, dsn) as external:
        defer_all(external, app)
        external.commit()
    work(app)
    assert ours == log
    with psycopg.connect(dsn) as conn:
        assert state == conn.execute(STATE).fetchall()
    assert {row[5] for row in state} == {"todo", "succeeded", "failed", "aborted"}
    ran = [run for run in runs if run.job.task_name != "unknown"]
    assert [(run.job.task_name, run.job.task_kwargs["n"]) for run in ran] == [
        line[:2] for line in log
    ]
    assert all(run.result == run.job.task_kwargs["n"] for run in ran if run.exception is None)


def test_leaves_nothing_after_the_rollback(
    external: External, app: procrastinate.App, watch: Watch
) -> None:
    """What ran was in the transaction: nobody else saw it, and a rollback leaves nothing."""
    add_tasks(app, [], is_async=external.kind.is_async)
    external.defer(app.tasks["splits"], n=1)
    runs = external.run(lambda: run_deferred(external.conn, app))
    assert [run.job.status for run in runs] == ["succeeded"] * 3
    assert watch.jobs() == []
    external.rollback()
    assert watch.jobs() == []


def test_a_failed_statement_does_not_cost_the_test_its_transaction(
    external: External, app: procrastinate.App
) -> None:
    """Where a task left the transaction failed, what the task did is undone and its outcome stored."""
    add_tasks(app, [], is_async=external.kind.is_async)

    def sync() -> None:
        app.tasks["plain"].defer(n=1)
        external._held.execute("SELECT 1 / 0")

    async def async_() -> None:
        await app.tasks["plain"].defer_async(n=1)
        await external._held.execute("SELECT 1 / 0")

    task = app.task(name="divides", retry=1)(async_ if external.kind.is_async else sync)
    external.defer(task)
    runs = external.run(lambda: run_deferred(external.conn, app, raise_errors=False))
    assert [(run.job.task_name, run.job.status, run.job.attempts) for run in runs] == [
        ("divides", "todo", 1),
        ("divides", "failed", 2),
    ]


# -- whose jobs -------------------------------------------------------------------------------------------------------


def test_others_jobs_do_not_run(conn: Any, dsn: str, app: procrastinate.App) -> None:
    """A committed job stays as it is, whoever committed it and when, and its lock counts."""
    add_tasks(app, log := [], is_async=False)
    plain = app.tasks["plain"]
    plain.configure(connection=conn, lock="a").defer(n=1)
    conn.commit()
    plain.configure(connection=conn).defer(n=2)
    plain.configure(connection=conn, lock="a").defer(n=3)
    with psycopg.connect(dsn) as other:
        plain.configure(connection=other).defer(n=4)
        other.execute("SAVEPOINT one")
        plain.configure(connection=other).defer(n=5)
    assert len(deferred_jobs(conn)) == 5
    run_deferred(conn, app)
    assert [line[1] for line in log] == [2]
    assert [job.task_kwargs["n"] for job in deferred_jobs(conn)] == [1, 3, 4, 5]


def test_jobs_of_savepoints(conn: Any, app: procrastinate.App) -> None:
    """Jobs from before and inside savepoints, open or released, are the transaction's; rolled back ones are gone."""
    add_tasks(app, log := [], is_async=False)
    plain = app.tasks["plain"].configure(connection=conn)
    plain.defer(n=1)
    with rolled_back(conn):
        plain.defer(n=2)
        with conn.transaction():
            plain.defer(n=3)
        with conn.transaction(force_rollback=True):
            plain.defer(n=4)
        conn.execute("SAVEPOINT left_open")
        plain.defer(n=5)
        run_deferred(conn, app)
    assert [line[1] for line in log] == [1, 2, 3, 5]
    assert assert_deferred(conn, "plain", n=1).attempts == 0


def test_a_retried_job_is_the_transactions(conn: Any, app: procrastinate.App) -> None:
    """A committed job that this transaction put back into the queue runs."""
    add_tasks(app, [], is_async=False)
    job_id = app.tasks["fails"].configure(connection=conn).defer(n=1)
    with pytest.raises(RuntimeError):
        run_deferred(conn, app)
    conn.commit()
    assert run_deferred(conn, app) == []
    manager = procrastinate.manager.JobManager(extconn.ExternalConnector(conn))
    manager.retry_job_by_id(job_id, retry_at=NOW)
    [run] = run_deferred(conn, app, raise_errors=False)
    assert (run.job.id, run.job.attempts) == (job_id, 3)


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
    """A test that is cancelled ends, whatever task runs."""

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
    """A job that its task completed has succeeded, whatever the task does then."""

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
