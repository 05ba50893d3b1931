"""Where a job runs twice, one run counts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import procrastinate
import psycopg
import pytest
from completion.tasks import (
    FEW_ASYNC,
    Complete,
    events,
    until,
    work_off,
    write,
    write_and_complete,
    write_complete_and_commit,
)
from holding import Watch
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job
from procrastinate.manager import JobManager

import procrastinate_extconn as extconn
from procrastinate_extconn.kinds import Held, Kind, all_kinds, done


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


@pytest.mark.parametrize("kind", FEW_ASYNC, ids=lambda kind: kind.id)
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


async def waits_for_its_second_run(manager: JobManager, job: Job) -> None:
    """Take the job for stalled."""
    await manager.retry_job(job, queue="elsewhere")


async def runs_in_another_worker(manager: JobManager, job: Job) -> None:
    """Let another worker fetch the job, too."""
    await manager.retry_job(job, queue="elsewhere")
    await manager.fetch_job(["elsewhere"], await manager.register_worker())


async def runs_in_the_same_worker(manager: JobManager, job: Job) -> None:
    """Let the same worker fetch it, which is alive after all."""
    assert job.worker_id
    await manager.retry_job(job, queue="elsewhere")
    await manager.fetch_job(["elsewhere"], job.worker_id)


async def was_put_back_by_hand(manager: JobManager, job: Job) -> None:
    """Let another worker fetch a job whose attempts nobody has counted."""
    await manager.connector.execute_query_async(
        "UPDATE procrastinate_jobs SET status = 'todo', queue_name = 'elsewhere'"
    )
    await manager.fetch_job(["elsewhere"], await manager.register_worker())


async def has_failed(manager: JobManager, job: Job) -> None:
    """Take the job for stalled when it is to be aborted: it is not run again."""
    assert job.id
    await manager.cancel_job_by_id_async(job.id, abort=True)
    await manager.retry_job(job)


@pytest.mark.parametrize("kind", FEW_ASYNC, ids=lambda kind: kind.id)
@pytest.mark.parametrize(
    "happens",
    [
        waits_for_its_second_run,
        runs_in_another_worker,
        runs_in_the_same_worker,
        was_put_back_by_hand,
        has_failed,
    ],
)
async def test_the_loser_leaves_the_job_as_it_is(
    app: procrastinate.App,
    define: Callable[..., Any],
    kind: Kind,
    watch: Watch,
    happens: Callable[[JobManager, Job], Awaitable[None]],
) -> None:
    """A run whose job is no longer its own cannot complete it, and its worker does not touch it."""
    race = Race()
    task = define(kind, race.body, retry=5)
    job_id = await task.defer_async()
    first = asyncio.create_task(work_off(app, queues=["default"]))
    await race.reached.wait()
    [job] = await app.job_manager.list_jobs_async()
    await happens(app.job_manager, job)
    before = watch.job(job_id)
    assert before

    race.go_on.set()
    await first

    assert f"it is {before['status']!r} now" in str(race.refusal)
    if before["worker_id"] == job.worker_id:
        before["worker_id"] = None  # That worker has gone.
    assert watch.job(job_id) == before
    assert watch.orders() == []


async def test_completing_keeps_the_job_from_being_retried(
    app: procrastinate.App, define: Callable[..., Any], dsn: str, watch: Watch
) -> None:
    """A retry of the job waits for its open transaction, and is then told that the job has succeeded."""
    [kind] = [kind for kind in all_kinds() if kind.id == "psycopg-async"]
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
    assert watch.job(job_id)["status"] == "succeeded"


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
    assert watch.job(job_id)["status"] == "succeeded"
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
    assert watch.job(job_id)["status"] == "succeeded"


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
