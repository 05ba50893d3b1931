"""A job that its task completes in its own transaction succeeds with that transaction or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import procrastinate
import psycopg
import pytest
from holding import Watch
from procrastinate.exceptions import ConnectorException, JobAborted
from procrastinate.manager import JobManager
from procrastinate.testing import InMemoryConnector
from procrastinate.worker import Worker

import procrastinate_extconn as extconn
from procrastinate_extconn import settlement
from procrastinate_extconn.kinds import KINDS, Held, Kind, done, run

Complete = Callable[[procrastinate.JobContext, object], Any]
Body = Callable[[procrastinate.JobContext, Held, Complete], Awaitable[object]]

FEW = (
    "psycopg",
    "psycopg-async",
    "sqlalchemy-session-psycopg",
    "sqlalchemy-async-session-asyncpg",
)


@pytest.fixture(params=[kind for kind in KINDS if kind.id in FEW], ids=lambda kind: kind.id)
def one_of_few(request: pytest.FixtureRequest) -> Kind:
    """A way to hold a transaction: sync and async, on a driver and through SQLAlchemy."""
    kind: Kind = request.param
    if missing := kind.missing():
        pytest.skip(f"not installed: {', '.join(missing)}")
    return kind


@pytest.fixture
async def app(installed: None, dsn: str) -> AsyncIterator[procrastinate.App]:
    """An app whose worker can run."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=1))
    async with app.open_async():
        yield app


@pytest.fixture
def define(app: procrastinate.App, dsn: str) -> Callable[..., Any]:
    """Define a task that runs a body on a connection of a kind, in the kind's own colour."""

    def define(kind: Kind, body: Body, **options: Any) -> Any:
        if kind.is_async:

            @app.task(name="work", pass_context=True, **options)
            async def work_async(context: procrastinate.JobContext) -> None:
                async with kind.open(dsn) as held:
                    await body(context, held, extconn.complete_async)

            return work_async

        @app.task(name="work", pass_context=True, **options)
        def work(context: procrastinate.JobContext) -> None:
            async def on_held(held: Held) -> None:
                await body(context, held, extconn.complete)

            run(kind, dsn, on_held)

        return work

    return define


async def work_off(app: procrastinate.App, **options: Any) -> None:
    """Run a worker until there is nothing left to do."""
    worker = app.run_worker_async(
        wait=False, install_signal_handlers=False, listen_notify=False, **options
    )
    await asyncio.wait_for(worker, 60)


async def write(context: procrastinate.JobContext, held: Held) -> None:
    """Leave a trace of this run, which nobody sees before it is committed."""
    await done(held.execute(f"INSERT INTO orders (id) VALUES ({trace(context.job)})"))


def trace(job: procrastinate.jobs.Job, attempts: int | None = None) -> int:
    """What `write` leaves."""
    assert job.id
    return job.id * 100 + (job.attempts if attempts is None else attempts)


async def write_and_complete(
    context: procrastinate.JobContext, held: Held, complete: Complete
) -> None:
    """Do what a task does, but for the commit."""
    await write(context, held)
    await done(complete(context, held.conn))


async def write_complete_and_commit(
    context: procrastinate.JobContext, held: Held, complete: Complete
) -> None:
    """Do all that a task does."""
    await write_and_complete(context, held, complete)
    await done(held.commit())


def events(dsn: str, job_id: int) -> list[str]:
    """What has happened to a job."""
    with psycopg.connect(dsn) as conn:
        rows = conn.execute(
            "SELECT type FROM procrastinate_events WHERE job_id = %s ORDER BY id", [job_id]
        )
        return [row[0] for row in rows]


def actions(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    """What was logged, by the word that both Procrastinate and we add to a record."""
    return [
        record.__dict__["action"]
        for record in caplog.records
        if record.levelno >= level and "action" in record.__dict__
    ]


@pytest.fixture
def record(caplog: pytest.LogCaptureFixture) -> Callable[[str], logging.LogRecord]:
    """The one log record with an action."""

    def record(action: str) -> logging.LogRecord:
        [found] = [one for one in caplog.records if one.__dict__.get("action") == action]
        return found

    caplog.set_level(logging.INFO)
    return record


# -- committed --------------------------------------------------------------------------------------------------------


async def test_the_job_succeeds_with_the_transaction(
    app: procrastinate.App,
    define: Callable[..., Any],
    kind: Kind,
    dsn: str,
    watch: Watch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once the task's transaction is committed, its rows are there and its job is as its worker would have left it."""
    seen_within: list[Any] = []

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        await write_and_complete(context, held, complete)
        seen_within.append((watch.job(context.job.id or 0), watch.orders()))
        await done(held.commit())

    @app.task
    def plain() -> None: ...

    plain_id = await plain.defer_async()
    job_id = await define(kind, body).defer_async()
    with caplog.at_level(logging.INFO):
        await work_off(app)

    assert seen_within[0][0]["status"] == "doing"
    assert seen_within[0][1] == []
    assert watch.orders() == [job_id * 100]
    expected, job = watch.job(plain_id), watch.job(job_id)
    assert expected
    assert job == {**expected, "id": job_id, "task_name": "work"}
    assert job["status"] == "succeeded"
    assert events(dsn, job_id) == events(dsn, plain_id) == ["deferred", "started", "succeeded"]
    assert actions(caplog).count("job_success") == 2
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize(
    ("delete_jobs", "is_kept"), [("never", True), ("successful", False), ("always", False)]
)
async def test_the_worker_deletes_the_job_if_it_is_told_to(
    app: procrastinate.App,
    define: Callable[..., Any],
    one_of_few: Kind,
    watch: Watch,
    delete_jobs: str,
    is_kept: bool,
) -> None:
    """A completed job is deleted by the worker's own setting, like any other that succeeds."""
    job_id = await define(one_of_few, write_complete_and_commit).defer_async()
    await work_off(app, delete_jobs=delete_jobs)
    assert watch.orders() == [job_id * 100]
    assert watch.jobs() == ([job_id] if is_kept else [])


async def test_an_exception_after_the_commit_changes_nothing(
    app: procrastinate.App,
    define: Callable[..., Any],
    one_of_few: Kind,
    dsn: str,
    watch: Watch,
    caplog: pytest.LogCaptureFixture,
    record: Callable[[str], logging.LogRecord],
) -> None:
    """The job stays succeeded, is not retried, and the log says when the exception came."""

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        await write_complete_and_commit(context, held, complete)
        raise ZeroDivisionError

    job_id = await define(one_of_few, body, retry=5).defer_async()
    await work_off(app)

    job = watch.job(job_id)
    assert job
    assert (job["status"], job["attempts"]) == ("succeeded", 1)
    assert watch.orders() == [job_id * 100]
    assert events(dsn, job_id) == ["deferred", "started", "succeeded"]
    error = record("error_after_completion")
    assert error.exc_info
    assert error.exc_info[0] is ZeroDivisionError
    assert "stays succeeded" in error.getMessage()
    assert not {"job_error", "job_error_retry"} & set(actions(caplog))


async def test_a_job_that_fails_after_its_commit_counts_as_successful(
    app: procrastinate.App, define: Callable[..., Any], one_of_few: Kind, watch: Watch
) -> None:
    """A worker that deletes successful jobs deletes a completed one whose task would be retried otherwise."""

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        await write_complete_and_commit(context, held, complete)
        raise ZeroDivisionError

    job_id = await define(one_of_few, body, retry=5).defer_async()
    await work_off(app, delete_jobs="successful")
    assert watch.jobs() == []
    assert watch.orders() == [job_id * 100]


async def test_a_foreign_key_to_the_job_is_no_open_transaction(
    app: procrastinate.App,
    define: Callable[..., Any],
    one_of_few: Kind,
    dsn: str,
    watch: Watch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Somebody's uncommitted row that refers to the job does not keep its worker from accepting it."""
    with psycopg.connect(dsn) as conn:

        async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
            conn.execute("INSERT INTO procrastinate_events (job_id) VALUES (%s)", [context.job.id])
            await write_complete_and_commit(context, held, complete)

        job_id = await define(one_of_few, body).defer_async()
        await work_off(app)
    assert watch.job(job_id)["status"] == "succeeded"  # type: ignore[index]
    assert actions(caplog, logging.WARNING) == []


# -- rolled back ------------------------------------------------------------------------------------------------------


async def rolls_back_and_raises(
    context: procrastinate.JobContext, held: Held, complete: Complete
) -> None:
    """Fail after `complete`, as a task does whose commit fails."""
    await write_and_complete(context, held, complete)
    await done(held.rollback())
    raise ZeroDivisionError


async def rolls_back_and_returns(
    context: procrastinate.JobContext, held: Held, complete: Complete
) -> None:
    """Forget to commit."""
    await write_and_complete(context, held, complete)
    await done(held.rollback())


async def rolls_back_to_a_savepoint(
    context: procrastinate.JobContext, held: Held, complete: Complete
) -> None:
    """Undo `complete` alone."""
    await done(held.execute("SAVEPOINT here"))
    await write_and_complete(context, held, complete)
    await done(held.execute("ROLLBACK TO SAVEPOINT here"))
    await done(held.commit())


@pytest.mark.parametrize(
    "body", [rolls_back_and_raises, rolls_back_and_returns, rolls_back_to_a_savepoint]
)
async def test_the_job_fails_if_its_transaction_is_rolled_back(
    app: procrastinate.App,
    define: Callable[..., Any],
    one_of_few: Kind,
    body: Body,
    dsn: str,
    watch: Watch,
    record: Callable[[str], logging.LogRecord],
) -> None:
    """Nothing of the run is left, and the job has failed, even where the task returned as if all were well."""
    job_id = await define(one_of_few, body).defer_async()
    await work_off(app)

    job = watch.job(job_id)
    assert job
    assert (job["status"], job["attempts"]) == ("failed", 1)
    assert watch.orders() == []
    assert events(dsn, job_id) == ["deferred", "started", "failed"]
    exc_info = record("job_error").exc_info
    assert exc_info
    if body is rolls_back_and_raises:
        assert exc_info[0] is ZeroDivisionError
    else:
        assert exc_info[0] is extconn.ExternalConnectionError
        assert "rolled back, or never committed" in str(exc_info[1])


@pytest.mark.parametrize("body", [rolls_back_and_raises, rolls_back_and_returns])
async def test_the_job_is_retried_if_its_transaction_is_rolled_back(
    app: procrastinate.App,
    define: Callable[..., Any],
    one_of_few: Kind,
    body: Body,
    dsn: str,
    watch: Watch,
) -> None:
    """The task's own retry strategy applies, and the run that commits is the one whose effect is there."""

    async def fails_once(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        await (body if context.job.attempts == 0 else write_complete_and_commit)(
            context, held, complete
        )

    job_id = await define(one_of_few, fails_once, retry=1).defer_async()
    await work_off(app)

    job = watch.job(job_id)
    assert job
    assert (job["status"], job["attempts"]) == ("succeeded", 2)
    assert watch.orders() == [job_id * 100 + 1]
    assert [event for event in events(dsn, job_id) if event != "scheduled"] == [
        "deferred",
        "started",
        "deferred_for_retry",
        "started",
        "succeeded",
    ]


async def test_a_failed_job_is_deleted_if_the_worker_is_told_to(
    app: procrastinate.App, define: Callable[..., Any], one_of_few: Kind, watch: Watch
) -> None:
    """Where the transaction is rolled back, the worker treats the job as it treats any that fails."""
    await define(one_of_few, rolls_back_and_raises).defer_async()
    await work_off(app, delete_jobs="always")
    assert watch.jobs() == []


async def test_the_outcome_is_logged_although_the_row_cannot_be_read(
    app: procrastinate.App,
    define: Callable[..., Any],
    one_of_few: Kind,
    monkeypatch: pytest.MonkeyPatch,
    record: Callable[[str], logging.LogRecord],
) -> None:
    """A worker that has lost its database says how the task ended, as it would have before."""
    execute = app.connector.execute_query_all_async

    async def lose(query: str, **arguments: Any) -> Any:
        if "SKIP LOCKED" in query:
            raise ConnectorException
        return await execute(query, **arguments)

    monkeypatch.setattr(app.connector, "execute_query_all_async", lose)
    await define(one_of_few, rolls_back_and_raises).defer_async()
    await work_off(app)
    assert record("job_error").exc_info


# -- left open --------------------------------------------------------------------------------------------------------


class LeftOpen:
    """Connections that tasks leave open, for the test to decide upon."""

    def __init__(self) -> None:
        self.sync_stack = contextlib.ExitStack()
        self.async_stack = contextlib.AsyncExitStack()
        self.held: Held

    def define(self, app: procrastinate.App, kind: Kind, dsn: str, **options: Any) -> Any:
        """Define a task that completes its first run, but neither commits nor rolls back; then it may fail."""

        async def body(context: procrastinate.JobContext, complete: Complete) -> None:
            if context.job.attempts == 0:
                await write_and_complete(context, self.held, complete)
                if context.job.task_kwargs["fail"]:
                    raise ZeroDivisionError

        if kind.is_async:

            @app.task(pass_context=True, **options)
            async def work_async(context: procrastinate.JobContext, fail: bool) -> None:
                self.held = await self.async_stack.enter_async_context(kind.open(dsn))
                await body(context, extconn.complete_async)

            return work_async

        @app.task(pass_context=True, **options)
        def work(context: procrastinate.JobContext, fail: bool) -> None:
            self.held = self.sync_stack.enter_context(kind.open(dsn))
            with contextlib.suppress(StopIteration):
                body(context, extconn.complete).__await__().send(None)

        return work


@pytest.fixture
async def left_open() -> AsyncIterator[LeftOpen]:
    """Close what tasks leave open."""
    left_open = LeftOpen()
    with left_open.sync_stack:
        async with left_open.async_stack:
            yield left_open


@pytest.mark.parametrize("fail", [False, True])
async def test_a_transaction_left_open_stops_nobody(
    app: procrastinate.App,
    one_of_few: Kind,
    dsn: str,
    left_open: LeftOpen,
    watch: Watch,
    record: Callable[[str], logging.LogRecord],
    fail: bool,
) -> None:
    """The worker does not wait for the row of such a job, not even to shut down, and says what it has found."""
    job_id = await left_open.define(app, one_of_few, dsn).defer_async(fail=fail)
    await work_off(app)

    found = record("transaction_left_open")
    assert found.levelno == logging.ERROR
    assert f"[{job_id}] has ended with the transaction open" in found.getMessage()
    assert record("worker_left_registered")
    assert watch.job(job_id)["status"] == "doing"  # type: ignore[index]

    await done(left_open.held.commit())
    assert watch.job(job_id)["status"] == "succeeded"  # type: ignore[index]
    assert watch.orders() == [job_id * 100]
    assert events(dsn, job_id) == ["deferred", "started", "succeeded"]


async def test_a_transaction_left_open_and_rolled_back_leaves_a_stalled_job(
    app: procrastinate.App, one_of_few: Kind, dsn: str, left_open: LeftOpen, watch: Watch
) -> None:
    """Once its worker has gone, the job is found by Procrastinate's own search for stalled jobs and runs again."""
    job_id = await left_open.define(app, one_of_few, dsn).defer_async(fail=False)
    await work_off(app)
    await done(left_open.held.rollback())

    [stalled] = await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=0)
    assert stalled.id == job_id
    await app.job_manager.retry_job(stalled)
    await work_off(app)
    assert watch.job(job_id)["status"] == "succeeded"  # type: ignore[index]


@contextlib.asynccontextmanager
async def working(app: procrastinate.App, **options: Any) -> AsyncIterator[None]:
    """Run a worker beside the test."""
    worker = asyncio.create_task(
        app.run_worker_async(
            install_signal_handlers=False,
            listen_notify=False,
            fetch_job_polling_interval=0.05,
            **options,
        )
    )
    yield
    worker.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait_for(worker, 60)


async def until(condition: Callable[[], object]) -> None:
    """Look again and again, until the test's own time-out."""
    while not condition():  # noqa: ASYNC110 - the database sets no event
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("fail", [False, True])
async def test_a_late_commit_is_accepted(
    app: procrastinate.App,
    one_of_few: Kind,
    dsn: str,
    left_open: LeftOpen,
    watch: Watch,
    caplog: pytest.LogCaptureFixture,
    fail: bool,
) -> None:
    """A worker that goes on running settles the job once its transaction is committed."""
    job_id = await left_open.define(app, one_of_few, dsn, retry=1).defer_async(fail=fail)
    async with working(app, delete_jobs="successful"):
        await until(lambda: "transaction_left_open" in actions(caplog))
        await done(left_open.held.commit())
        await until(lambda: not watch.jobs())
    assert watch.orders() == [job_id * 100]
    assert not settlement._open[app.job_manager]


@pytest.mark.parametrize("fail", [False, True])
async def test_a_late_rollback_is_a_failure(
    app: procrastinate.App,
    one_of_few: Kind,
    dsn: str,
    left_open: LeftOpen,
    watch: Watch,
    caplog: pytest.LogCaptureFixture,
    fail: bool,
) -> None:
    """A worker that goes on running retries the job once its transaction is rolled back."""
    job_id = await left_open.define(app, one_of_few, dsn, retry=1).defer_async(fail=fail)
    async with working(app):
        await until(lambda: "transaction_left_open" in actions(caplog))
        await done(left_open.held.rollback())
        await until(lambda: watch.job(job_id)["status"] == "succeeded")  # type: ignore[index]
    assert watch.orders() == []
    assert "deferred_for_retry" in events(dsn, job_id)


@pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning")
async def test_a_connection_that_an_exception_keeps_alive_is_let_go(
    app: procrastinate.App, dsn: str, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that forgets its connection and raises fails once the connection is collected as garbage."""

    @app.task(pass_context=True)
    def work(context: procrastinate.JobContext) -> None:
        conn = psycopg.connect(dsn)
        extconn.complete(context, conn)
        raise ZeroDivisionError

    def is_failed() -> bool:
        gc.collect()
        job = watch.job(job_id)
        return job is not None and job["status"] == "failed"

    found: list[str] = []
    # pytest keeps the records that it gets, and with them the exception.
    monkeypatch.setattr(settlement.logger, "handle", lambda record: found.append(record.action))
    job_id = await work.defer_async()
    async with working(app):
        await until(lambda: found == ["transaction_left_open"])
        await until(is_failed)


# -- the fence --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def other_app(dsn: str) -> AsyncIterator[procrastinate.App]:
    """The app once more, as in another process."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=1))
    async with app.open_async():
        yield app


class Race:
    """A job that is taken for stalled while its first run is before `complete`."""

    def __init__(self, swallow: bool = False) -> None:
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self.refusal: BaseException | None = None
        self._swallow = swallow

    async def body(self, context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        """Wait between writing and completing, in the first run."""
        await write(context, held)
        if context.job.attempts == 0:
            self.reached.set()
            await self.go_on.wait()
        try:
            await done(complete(context, held.conn))
        except extconn.ExternalConnectionError as exc:
            self.refusal = exc
            if self._swallow:
                return
            raise
        await done(held.commit())


ASYNC = [kind for kind in KINDS if kind.id in FEW and kind.is_async]


@pytest.mark.parametrize("kind", ASYNC, ids=lambda kind: kind.id)
@pytest.mark.parametrize("swallow", [False, True])
async def test_the_second_run_wins(
    app: procrastinate.App,
    other_app: procrastinate.App,
    define: Callable[..., Any],
    kind: Kind,
    dsn: str,
    watch: Watch,
    record: Callable[[str], logging.LogRecord],
    swallow: bool,
) -> None:
    """The run that was taken for stalled is refused, its effect goes, and its worker leaves the row alone."""
    race = Race(swallow)
    task = define(kind, race.body, retry=5)
    other_app.tasks["work"] = task
    job_id = await task.defer_async()
    first = asyncio.create_task(work_off(app))
    await race.reached.wait()
    [job] = await app.job_manager.list_jobs_async()
    await app.job_manager.retry_job(job)
    await work_off(other_app)
    after_second = watch.job(job_id)

    race.go_on.set()
    await first

    assert isinstance(race.refusal, extconn.ExternalConnectionError)
    assert f"job {job_id} is not this run's to complete: it is 'succeeded' now" in str(race.refusal)
    assert watch.job(job_id) == after_second
    assert watch.orders() == [job_id * 100 + 1]
    assert events(dsn, job_id)[-2:] == ["started", "succeeded"]
    assert "left as it is" in record("job_taken").getMessage()


@pytest.mark.parametrize("kind", ASYNC, ids=lambda kind: kind.id)
@pytest.mark.parametrize("status", ["todo", "doing"])
async def test_the_loser_leaves_a_job_that_is_not_finished(
    app: procrastinate.App,
    define: Callable[..., Any],
    kind: Kind,
    dsn: str,
    watch: Watch,
    status: str,
) -> None:
    """A job that waits for its second run, or is in it, is not touched by the worker of its first."""
    race = Race()
    task = define(kind, race.body, retry=5)
    job_id = await task.defer_async()
    first = asyncio.create_task(work_off(app, queues=["default"]))
    await race.reached.wait()
    [job] = await app.job_manager.list_jobs_async()
    await app.job_manager.retry_job(job, queue="elsewhere")
    if status == "doing":
        worker_id = await app.job_manager.register_worker()
        assert await app.job_manager.fetch_job(queues=["elsewhere"], worker_id=worker_id)
    before = watch.job(job_id)
    assert before

    race.go_on.set()
    await first

    assert f"it is {status!r} now, at 1 attempts" in str(race.refusal)
    if status == "todo":
        before["worker_id"] = None  # The first worker has gone.
    assert watch.job(job_id) == before
    assert watch.orders() == []


async def test_completing_keeps_the_job_from_being_retried(
    app: procrastinate.App, define: Callable[..., Any], dsn: str, watch: Watch
) -> None:
    """Whoever retries the job while its transaction is open waits for that, and is told that it has succeeded."""
    [kind] = [kind for kind in KINDS if kind.id == "psycopg-async"]
    completed, go_on = asyncio.Event(), asyncio.Event()

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        await write_and_complete(context, held, complete)
        completed.set()
        await go_on.wait()
        await done(held.commit())

    job_id = await define(kind, body).defer_async()
    worker = asyncio.create_task(work_off(app))
    await completed.wait()
    [job] = await app.job_manager.list_jobs_async()
    retry = asyncio.create_task(app.job_manager.retry_job(job))
    with psycopg.connect(dsn, autocommit=True) as conn:
        waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        await until(lambda: conn.execute(waits).fetchone())
    go_on.set()
    with pytest.raises(ConnectorException):
        await retry
    await worker
    assert watch.job(job_id)["status"] == "succeeded"  # type: ignore[index]


async def test_a_worker_that_was_pruned_may_still_complete(
    app: procrastinate.App, define: Callable[..., Any], one_of_few: Kind, dsn: str, watch: Watch
) -> None:
    """A run whose worker was taken for dead, but whose job nobody has retried, counts."""

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        with psycopg.connect(dsn) as conn:
            conn.execute("DELETE FROM procrastinate_workers")
        await write_complete_and_commit(context, held, complete)

    job_id = await define(one_of_few, body).defer_async()
    await work_off(app)
    assert watch.job(job_id)["status"] == "succeeded"  # type: ignore[index]
    assert watch.orders() == [job_id * 100]


async def test_completing_twice_is_refused(
    app: procrastinate.App, define: Callable[..., Any], one_of_few: Kind, watch: Watch
) -> None:
    """The second call in one transaction says that the first has done it, and harms nothing."""
    refusals: list[str] = []

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        await write_and_complete(context, held, complete)
        with pytest.raises(extconn.ExternalConnectionError) as refusal:
            await done(complete(context, held.conn))
        refusals.append(str(refusal.value))
        await done(held.commit())

    job_id = await define(one_of_few, body).defer_async()
    await work_off(app)
    assert "it is completed already" in refusals[0]
    assert watch.job(job_id)["status"] == "succeeded"  # type: ignore[index]


async def test_a_job_that_was_deleted_cannot_be_completed(
    app: procrastinate.App,
    define: Callable[..., Any],
    one_of_few: Kind,
    dsn: str,
    watch: Watch,
    record: Callable[[str], logging.LogRecord],
) -> None:
    """Where somebody has deleted the running job, its effect goes too."""

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        with psycopg.connect(dsn) as conn:
            conn.execute("DELETE FROM procrastinate_jobs")
        await write_complete_and_commit(context, held, complete)

    await define(one_of_few, body).defer_async()
    await work_off(app)
    assert watch.orders() == []
    exc_info = record("job_taken").exc_info
    assert exc_info
    assert "it has been deleted" in str(exc_info[1])


# -- locks and abort requests -----------------------------------------------------------------------------------------


async def test_the_lock_is_free_once_the_transaction_is_committed(
    app: procrastinate.App, define: Callable[..., Any], one_of_few: Kind, watch: Watch
) -> None:
    """Jobs that share a lock still run one after the other, and each runs."""
    running: list[int] = []
    most: list[int] = []

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        running.append(1)
        await write_and_complete(context, held, complete)
        most.append(len(running))
        running.pop()
        await done(held.commit())

    task = define(one_of_few, body)
    job_ids = [await task.configure(lock="till").defer_async() for _ in range(5)]
    async with working(app, concurrency=5):
        await until(lambda: len(watch.orders()) == 5)
    assert watch.orders() == [job_id * 100 for job_id in job_ids]
    assert set(most) == {1}


async def test_the_queueing_lock_is_free_while_the_job_runs(
    app: procrastinate.App, define: Callable[..., Any], one_of_few: Kind, watch: Watch
) -> None:
    """A job with the queueing lock of the one that runs is deferred in the same transaction, and runs."""

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        if context.job.id == 1:
            next_one = task.configure(queueing_lock="till", connection=held.conn)
            is_async = complete is extconn.complete_async
            await done(next_one.defer_async() if is_async else next_one.defer())
        await write_complete_and_commit(context, held, complete)

    task = define(one_of_few, body)
    await task.configure(queueing_lock="till").defer_async()
    await work_off(app)
    assert watch.orders() == [100, 200]


async def test_an_abort_request_that_the_task_ignores(
    app: procrastinate.App, define: Callable[..., Any], dsn: str, watch: Watch
) -> None:
    """The job succeeds, and the request is taken back, as `finish_job` would."""
    [kind] = [kind for kind in KINDS if kind.id == "psycopg"]

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        with psycopg.connect(dsn) as conn:
            conn.execute("UPDATE procrastinate_jobs SET abort_requested = true")
        await write_complete_and_commit(context, held, complete)

    job_id = await define(kind, body).defer_async()
    await work_off(app)
    job = watch.job(job_id)
    assert job
    assert (job["status"], job["abort_requested"]) == ("succeeded", False)
    assert events(dsn, job_id) == ["deferred", "started", "abort_requested", "succeeded"]


async def test_a_task_that_aborts_itself(
    app: procrastinate.App, define: Callable[..., Any], one_of_few: Kind, watch: Watch
) -> None:
    """A task that rolls back and raises JobAborted is aborted, whether or not it had completed."""

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        await write_and_complete(context, held, complete)
        await done(held.rollback())
        raise JobAborted

    job_id = await define(one_of_few, body).defer_async()
    await work_off(app)
    assert watch.job(job_id)["status"] == "aborted"  # type: ignore[index]
    assert watch.orders() == []


@pytest.mark.parametrize("kind", ASYNC, ids=lambda kind: kind.id)
@pytest.mark.parametrize("is_committed", [False, True])
async def test_a_task_that_is_cancelled_after_completing(
    app: procrastinate.App,
    define: Callable[..., Any],
    kind: Kind,
    dsn: str,
    watch: Watch,
    is_committed: bool,
) -> None:
    """An abort request that cancels the task aborts the job if it comes before the commit, and not after it."""
    ready = asyncio.Event()

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        await write_and_complete(context, held, complete)
        if is_committed:
            await done(held.commit())
        ready.set()
        await asyncio.Event().wait()

    job_id = await define(kind, body).defer_async()
    worker = Worker(app, wait=False, install_signal_handlers=False, listen_notify=False)
    running = asyncio.create_task(worker.run())
    await ready.wait()
    worker._handle_abort_jobs_requested([job_id])
    await asyncio.wait_for(running, 60)

    assert watch.job(job_id)["status"] == ("succeeded" if is_committed else "aborted")  # type: ignore[index]
    assert watch.orders() == ([job_id * 100] if is_committed else [])
    assert worker._job_ids_to_abort == {}


# -- options and misuse -----------------------------------------------------------------------------------------------


async def test_options_of_the_connection_apply(
    app: procrastinate.App, define: Callable[..., Any], one_of_few: Kind, watch: Watch
) -> None:
    """What `external` made of a connection is taken as the connection is."""

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        await write(context, held)
        await done(complete(context, extconn.external(held.conn, savepoint=True)))
        await done(held.commit())

    job_id = await define(one_of_few, body).defer_async()
    await work_off(app)
    assert watch.job(job_id)["status"] == "succeeded"  # type: ignore[index]


async def test_a_connection_that_commits_by_itself_can_be_refused(
    app: procrastinate.App, dsn: str, watch: Watch
) -> None:
    """The mode of the transaction guard holds for `complete` too, and nothing is sent."""
    extconn.patch(app, outside_transaction="error")

    @app.task(pass_context=True)
    def work(context: procrastinate.JobContext) -> None:
        with psycopg.connect(dsn, autocommit=True) as conn:
            with pytest.raises(extconn.OutsideTransaction):
                extconn.complete(context, conn)
            assert watch.job(context.job.id or 0)["status"] == "doing"  # type: ignore[index]
            with conn.transaction():
                extconn.complete(context, conn)

    job_id = await work.defer_async()
    await work_off(app)
    assert watch.job(job_id)["status"] == "succeeded"  # type: ignore[index]


async def test_the_wrong_colour_is_refused(app: procrastinate.App, dsn: str, watch: Watch) -> None:
    """A sync connection in `complete_async`, and the reverse, are refused by name."""

    @app.task(pass_context=True)
    async def work(context: procrastinate.JobContext) -> None:
        with psycopg.connect(dsn) as conn, pytest.raises(extconn.SyncAsyncMismatch):
            await extconn.complete_async(context, conn)
        async with await psycopg.AsyncConnection.connect(dsn) as async_conn:
            with pytest.raises(extconn.SyncAsyncMismatch):
                extconn.complete(context, async_conn)
            await extconn.complete_async(context, async_conn)

    job_id = await work.defer_async()
    await work_off(app)
    assert watch.job(job_id)["status"] == "succeeded"  # type: ignore[index]


async def test_a_worker_without_the_layer_is_refused(dsn: str, watch: Watch) -> None:
    """Where nothing is installed `complete` says so, for the worker would not understand."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=1))

    @app.task(pass_context=True)
    def work(context: procrastinate.JobContext) -> None:
        with psycopg.connect(dsn) as conn:
            extconn.complete(context, conn)

    async with app.open_async():
        job_id = await work.defer_async()
        await work_off(app)
        assert watch.job(job_id)["status"] == "failed"  # type: ignore[index]
        extconn.patch(app)
        job_id = await work.defer_async()
        await work_off(app)
        assert watch.job(job_id)["status"] == "succeeded"  # type: ignore[index]
        extconn.unpatch(app)


async def test_another_worker_than_the_known_one_is_refused(
    app: procrastinate.App,
    define: Callable[..., Any],
    one_of_few: Kind,
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Procrastinate whose worker ends jobs in some other way fails the task, not the guarantee."""
    refused: list[str] = []
    monkeypatch.setitem(settlement._WRAPPERS, (Worker, "_renamed"), lambda original: original)

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        await write(context, held)
        with pytest.raises(extconn.ExternalConnectionError) as refusal:
            await done(complete(context, held.conn))
        refused.append(str(refusal.value))
        raise refusal.value

    job_id = await define(one_of_few, body).defer_async()
    await work_off(app)
    assert "has no Worker._renamed" in refused[0]
    assert watch.job(job_id)["status"] == "failed"  # type: ignore[index]
    assert watch.orders() == []


def test_a_job_in_memory_is_left_to_its_worker(installed: None) -> None:
    """A unit test on an InMemoryConnector needs no database for a task that completes itself."""
    app = procrastinate.App(connector=InMemoryConnector())

    @app.task(pass_context=True)
    def work(context: procrastinate.JobContext) -> None:
        extconn.complete(context, object())

    work.defer()
    app.run_worker(wait=False, install_signal_handlers=False, listen_notify=False)
    [job] = app.connector.jobs.values()  # type: ignore[attr-defined]
    assert job["status"] == "succeeded"


# -- everything else stays as it is -----------------------------------------------------------------------------------


@pytest.fixture
def attributes() -> Callable[[], dict[Any, Any]]:
    """The attributes of the classes that the layer reaches into."""
    return lambda: {cls: dict(vars(cls)) for cls in (Worker, JobManager)}


async def test_nothing_is_wrapped_without_complete_or_after_uninstall(
    attributes: Callable[[], dict[Any, Any]], dsn: str
) -> None:
    """Procrastinate's worker is touched from the first `complete` until `uninstall`, and then it is as it was."""
    before = attributes()
    extconn.install()
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=1))

    @app.task(pass_context=True)
    def work(context: procrastinate.JobContext) -> None:
        with psycopg.connect(dsn) as conn:
            extconn.complete(context, conn)

    async with app.open_async():
        await work.defer_async()
        assert attributes() == before
        await work_off(app)
        assert attributes() != before
    extconn.uninstall()
    assert attributes() == before


async def test_other_jobs_go_their_way(
    app: procrastinate.App,
    define: Callable[..., Any],
    one_of_few: Kind,
    dsn: str,
    watch: Watch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A job whose task calls no `complete` succeeds, fails and is retried as ever, beside one whose task does."""

    @app.task
    def succeed() -> None: ...

    @app.task(retry=1)
    def fail() -> None:
        raise ZeroDivisionError

    await define(one_of_few, write_complete_and_commit).defer_async()
    succeeded = await succeed.defer_async()
    failed = await fail.defer_async()
    with caplog.at_level(logging.INFO):
        await work_off(app)
    assert events(dsn, succeeded) == ["deferred", "started", "succeeded"]
    assert [event for event in events(dsn, failed) if event != "scheduled"] == [
        "deferred",
        "started",
        "deferred_for_retry",
        "started",
        "failed",
    ]
    outcomes = [action for action in actions(caplog) if action.startswith("job_")]
    assert sorted(outcomes) == ["job_error", "job_error_retry", "job_success", "job_success"]


async def test_nothing_is_left_behind(
    app: procrastinate.App, define: Callable[..., Any], one_of_few: Kind, watch: Watch
) -> None:
    """Whatever becomes of a job, its worker keeps nothing of it."""
    bodies = [write_complete_and_commit, rolls_back_and_raises, rolls_back_and_returns]

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        assert context.job.id
        await bodies[context.job.id % 3](context, held, complete)

    task = define(one_of_few, body)
    await task.batch_defer_async(*[{}] * 9)
    await work_off(app)
    gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, settlement._Ending)]


def test_no_argument_of_a_job_is_in_a_record_of_ours() -> None:
    """What we log names the task and the job, and nothing that the job carries."""
    job = procrastinate.jobs.Job(
        id=5,
        queue="default",
        lock=None,
        queueing_lock=None,
        task_name="work",
        task_kwargs={"password": "secret"},
    )
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    settlement.logger.addHandler(handler)
    settlement._Ending(job)._log(logging.ERROR, "transaction_left_open", "was left")
    settlement.logger.removeHandler(handler)
    assert "secret" not in str(vars(records[0]))
